"""What is stored in the benchmark: the same for every system, made by a seed.

The text is real: the topics of Python's own help. It is cut into tokens of about four characters; a
token's id follows its rank by frequency, as the merges of a byte-pair vocabulary do, spread over 150,000.
Log-probs are exponentially distributed; they are the part that nothing compresses.
"""

from __future__ import annotations

import json
import random
import re
import struct
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pydoc_data.topics import topics

from lightningrl.schema import AttemptId, CallEvent, CallStatus, Choice, EventId, StepId

TASK: dict[str, object] = {
    "question": "What is 12 * 7?",
    "answer": "84",
    "data_id": "d0",
    "source": "arithmetic",
}

SMALL = "the agent looked up what it was asked and found it in the third document; " * 5
"""About as long as the attributes of a small span."""

_TOKEN = re.compile(r" ?[A-Za-z]{1,7}|[0-9]{1,3}| ?[^A-Za-z0-9\s]{1,3}|\s")

_VOCABULARY = 150_000

_REPLY_TOKENS = 16

_SPREAD = 1.3
"""Rank to this power is the id: about 9,000 different tokens reach to about 140,000."""


@dataclass(frozen=True)
class Spoken:
    """One model call of a conversation."""

    messages: list[dict[str, str]]
    answer: str
    prompt_ids: Sequence[int]
    answer_ids: Sequence[int]
    logprobs: Sequence[float]


class Speaker:
    """Makes calls from a seed."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def call(self, prompt_tokens: int = 1024, answer_tokens: int = 256) -> Spoken:
        """A conversation of one turn."""
        (spoken,) = self.conversation(1, prompt_tokens, answer_tokens)
        return spoken

    def conversation(self, turns: int, prompt_tokens: int, answer_tokens: int) -> list[Spoken]:
        """A conversation in which the user replies to each answer with a few tokens."""
        calls: list[Spoken] = []
        text, ids = self._passage(prompt_tokens)
        messages = [{"role": "user", "content": text}]
        for _ in range(turns):
            answer, answer_ids = self._passage(answer_tokens)
            logprobs = [-self._random.expovariate(2.0) for _ in answer_ids]
            calls.append(Spoken(list(messages), answer, ids, answer_ids, logprobs))
            reply, reply_ids = self._passage(_REPLY_TOKENS)
            messages += [
                {"role": "assistant", "content": answer},
                {"role": "user", "content": reply},
            ]
            ids = [*ids, *answer_ids, *reply_ids]
        return calls

    def synthetic(self, turns: int, prompt_tokens: int, answer_tokens: int) -> list[Spoken]:
        """A conversation whose ids are uniform over the vocabulary and whose text is one word, again and again.

        The ids are the worst case, the text the best one; the figures that this project started from were
        measured so.
        """
        calls: list[Spoken] = []
        ids = self._random.choices(range(_VOCABULARY), k=prompt_tokens)
        messages = [{"role": "user", "content": "p " * prompt_tokens}]
        for _ in range(turns):
            answer_ids = self._random.choices(range(_VOCABULARY), k=answer_tokens)
            logprobs = [-self._random.expovariate(2.0) for _ in answer_ids]
            answer = "c " * answer_tokens
            calls.append(Spoken(list(messages), answer, ids, answer_ids, logprobs))
            reply_ids = self._random.choices(range(_VOCABULARY), k=_REPLY_TOKENS)
            messages += [
                {"role": "assistant", "content": answer},
                {"role": "user", "content": "p " * _REPLY_TOKENS},
            ]
            ids = [*ids, *answer_ids, *reply_ids]
        return calls

    def _passage(self, tokens: int) -> tuple[str, list[int]]:
        """Text from anywhere in the corpus, and its token ids."""
        text, ids = _corpus()
        start = self._random.randrange(len(ids) - tokens)
        passage = slice(start, start + tokens)
        return "".join(text[passage]), ids[passage]


@cache
def _corpus() -> tuple[list[str], list[int]]:
    """The corpus as tokens, and their ids."""
    text = re.sub(r"\s+", " ", " ".join(topics[name] for name in sorted(topics)))
    tokens = _TOKEN.findall(text)
    ranks = {token: rank for rank, (token, _) in enumerate(Counter(tokens).most_common())}
    return tokens, [int(ranks[token] ** _SPREAD) for token in tokens]


def spoken_call(attempt: str, ident: str, spoken: Spoken) -> CallEvent:
    """The call as our gateway records it."""
    return CallEvent(
        id=EventId(ident),
        attempt_id=AttemptId(attempt),
        at=datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC),
        step_id=StepId(f"s-{ident}"),
        agent="solver",
        policy="policy",
        model="gpt-4o-mini",
        endpoint="http://127.0.0.1:8000/v1",
        version_start=3,
        version_end=3,
        request=json.dumps({"model": "gpt-4o-mini", "messages": spoken.messages}).encode(),
        sampling=None,
        prompt_ids=_packed("i", spoken.prompt_ids),
        choices=(
            Choice(
                index=0,
                message=json.dumps({"role": "assistant", "content": spoken.answer}).encode(),
                finish_reason="stop",
                token_ids=_packed("i", spoken.answer_ids),
                logprobs=_packed("f", spoken.logprobs),
            ),
        ),
        prompt_tokens=len(spoken.prompt_ids),
        completion_tokens=len(spoken.answer_ids),
        latency_ms=812.5,
        held_ms=0.0,
        upstream_retries=0,
        status=CallStatus.DELIVERED,
        http_status=200,
        error=None,
    )


def _packed(kind: str, values: Sequence[float]) -> bytes:
    return struct.pack(f"<{len(values)}{kind}", *values)
