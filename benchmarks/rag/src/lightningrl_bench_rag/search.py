"""Search over a corpus: BM25 (the library bm25s), the three best passages.

Invariant: the same corpus and query give the same passages in the same order; equal scores stay in the corpus's order. A
passage that has no word of the query is never a result.
"""

from __future__ import annotations

import functools
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import bm25s
import numpy as np

from lightningrl_bench_rag.world import passages

TOP = 3
"""Passages that a search returns."""
MAX_PASSAGE = 600
"""Longest passage shown, in characters; the rest is cut."""
NOTHING = "nothing found"
"""What a search without a result returns."""

# It says to the terminal, at the level of debugging, that it builds an index.
logging.getLogger("bm25s").setLevel(logging.WARNING)


class CorpusError(ValueError):
    """A corpus can't be read."""


class Index:
    """Some passages, searchable."""

    def __init__(self, texts: Sequence[str]) -> None:
        self._texts = list(texts)
        self._bm25 = bm25s.BM25()
        self._bm25.index(_words(self._texts), show_progress=False)

    def search(self, query: str) -> list[str]:
        """Return at most `TOP` passages, the best first."""
        (words,) = _words([query])
        if not words:
            return []
        scores = self._bm25.get_scores(words)
        best = np.argsort(-scores, kind="stable")[:TOP]
        return [self._texts[place] for place in best if scores[place] > 0]

    def answer(self, query: str) -> str:
        """Return what the search tool says to a query: a passage a line."""
        found = [text[:MAX_PASSAGE] for text in self.search(query)]
        return "\n".join(found) or NOTHING


@functools.lru_cache(maxsize=16)
def index_of(corpus: str) -> Index:
    """Return the index of a corpus, built once per process.

    Args:
        corpus: "generated/SPLIT/SEED", as generated tasks name theirs, or the path of a file of JSON lines with `text` and,
            if there is one, `title`.

    Raises:
        CorpusError: naming the file and line, or the name.
        OSError: the file can't be read.
    """
    if corpus.startswith("generated/"):
        return Index(passages(corpus))
    texts = [
        _text(line, f"{corpus}:{number}")
        for number, line in enumerate(Path(corpus).read_text("utf-8").splitlines(), start=1)
        if line.strip()
    ]
    if not texts:
        raise CorpusError(f"{corpus}: holds no passage")
    return Index(texts)


def _text(line: str, place: str) -> str:
    """One passage of a file, its title before it."""
    try:
        record: Any = json.loads(line)
    except json.JSONDecodeError as error:
        raise CorpusError(f"{place}: not JSON: {error}") from error
    text = record.get("text") if isinstance(record, dict) else None
    if not isinstance(text, str) or not text.strip():
        raise CorpusError(f"{place}: expected an object with 'text', found {line[:40]!r}")
    title = record.get("title") or ""
    return " ".join((f"{title}: {text}" if title else text).split())


def _words(texts: Sequence[str]) -> list[list[str]]:
    """The words that are searched for: lower case, without the commonest of English."""
    return bm25s.tokenize(list(texts), stopwords="en", return_ids=False, show_progress=False)  # pyright: ignore[reportReturnType] - lists, unless ids are asked for
