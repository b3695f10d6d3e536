"""The rewards: exact match and word F1, as SQuAD's and HotpotQA's scorers count them, and whether an answer can be read.

Both scorers compare texts without case, punctuation, the articles a, an, the, and repeated spaces (Rajpurkar et al. 2016,
arXiv:1606.05250; Yang et al. 2018, arXiv:1809.09600). Of several right answers the best counts, as in MuSiQue's and SQuAD's.

Invariant: rewards read only the task and the agent's output, never how the agent got there, never raise on what a model may
write, and give 0 to what can't be read.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Mapping
from typing import Any

MAX_WORDS = 12
"""A longer answer is no name but talk, and counts as unreadable."""

_CLOSED = {"yes", "no", "noanswer"}
"""Answers that HotpotQA's scorer gives no partial credit for."""
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def exact_match(task: Mapping[str, Any], output: object, trace: object) -> dict[str, float]:  # noqa: ARG001
    """Return "final" (1 or 0), "format" and, if it could be read, "accuracy" and "f1"."""
    return _told_apart(task, output, "exact")


def f1(task: Mapping[str, Any], output: object, trace: object) -> dict[str, float]:  # noqa: ARG001
    """Return the same with word F1 as "final"."""
    return _told_apart(task, output, "f1")


def f1_and_format(task: Mapping[str, Any], output: object, trace: object) -> dict[str, float]:
    """Return the same with 0.9 of F1 and 0.1 of format as "final": the mixture of the published curve for MuSiQue."""
    parts = f1(task, output, trace)
    return {**parts, "final": 0.9 * parts["final"] + 0.1 * parts["format"]}


def readable(output: object) -> bool:
    """Whether `output` is an answer at all: one line of 1 to `MAX_WORDS` words, and no half-written tool call."""
    text = str(output or "").strip()
    if "\n" in text or "<tool_call" in text or "</tool_call" in text:
        return False
    return 1 <= len(text.split()) <= MAX_WORDS and bool(normalise(text))


def normalise(text: str) -> str:
    """Return a text without case, punctuation, articles and repeated spaces, in that order."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact(prediction: str, answer: str) -> float:
    """Return 1.0 where both are the same after `normalise`, else 0.0."""
    return float(normalise(prediction) == normalise(answer))


def word_f1(prediction: str, answer: str) -> float:
    """Return the harmonic mean of precision and recall of words, each counted as often as it occurs.

    0.0 where no word is shared, and where one of them is yes, no or noanswer and the other is not the same. Two texts that
    are both empty after `normalise` are the same: 1.0.
    """
    found, wanted = normalise(prediction), normalise(answer)
    if found == wanted:
        return 1.0
    if found in _CLOSED or wanted in _CLOSED:
        return 0.0
    found_words, wanted_words = found.split(), wanted.split()
    shared = (Counter(found_words) & Counter(wanted_words)).total()
    return 2 * shared / (len(found_words) + len(wanted_words))


def _told_apart(task: Mapping[str, Any], output: object, final: str) -> dict[str, float]:
    if not readable(output):
        return {"final": 0.0, "format": 0.0}
    right = [str(task["answer"]), *(str(one) for one in task.get("aliases") or ())]
    scores = {
        "exact": max(exact(str(output), one) for one in right),
        "f1": max(word_f1(str(output), one) for one in right),
    }
    return {
        "final": scores[final],
        "format": 1.0,
        "accuracy": scores["exact"],
        "f1": scores["f1"],
    }
