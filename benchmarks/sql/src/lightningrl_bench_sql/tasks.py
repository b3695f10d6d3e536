"""Generated questions about generated SQLite files.

Invariants, each checked by a test:

- `generate(split, count, seed)` is a pure function of its arguments, the place of the files aside, and no question about
  one database occurs twice in its list.
- What splits share no word of is in `schemas`, and what they share no combination of in `questions`.
- Both files of a schema answer every question, and they answer it differently. None of `mistakes` is rewarded.
"""

from __future__ import annotations

import hashlib
import os
import random
import sqlite3
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from lightningrl.settings import cache_folder
from lightningrl_bench_sql.database import Row, rows_of, run, schema_of
from lightningrl_bench_sql.mistakes import mistakes
from lightningrl_bench_sql.questions import KINDS, Question, Scene, ask
from lightningrl_bench_sql.schemas import Schema, Split, schemas, script
from lightningrl_bench_sql.scoring import same

LEVELS = (1, 2, 3)

_MAX_TRIES = 200
"""Drawings for one new question before the split is declared exhausted."""


def generate(
    split: Split,
    count: int,
    seed: int,
    levels: Sequence[int] = LEVELS,
    folder: str | Path | None = None,
) -> list[dict[str, Any]]:
    """Return `count` different questions of `split` as JSON rows; their kinds take turns.

    A row has `id`, `question`, `schema`, `database` and `hidden` (paths), `query`, `ordered`, `match`, `kind` and `level`.
    An agent is shown the first four.

    Args:
        split: What shares nothing with the other splits.
        count: How many.
        seed: Of the questions and of what the databases hold.
        levels: Which kinds of questions.
        folder: Where the databases are, or will be; `None`: in the user's cache.

    Raises:
        ValueError: for an unknown split or level, a negative count, or more questions than the split holds.
    """
    return [row for row, _ in draw(split, count, seed, levels, folder)]


def draw(
    split: Split, count: int, seed: int, levels: Sequence[int], folder: str | Path | None
) -> Iterator[tuple[dict[str, Any], Question]]:
    """Yield what `generate` returns, each row with its question.

    Raises:
        ValueError: as `generate` does.
    """
    if split not in get_args(Split):
        raise ValueError(f"unknown split {split!r}: choose one of {', '.join(get_args(Split))}")
    if count < 0:
        raise ValueError(f"count must not be negative, got {count}")
    if not levels or not set(levels) <= set(LEVELS):
        raise ValueError(f"levels must be some of {LEVELS}, got {levels!r}")
    kinds = [name for name, kind in KINDS.items() if kind.level in levels]
    source = _Source(split, seed, cache_folder() / "bench-sql" if folder is None else Path(folder))
    for number in range(count):
        question, files = source.question(kinds[number % len(kinds)])
        row = {
            "id": f"{split}-{seed}-{number}",
            "question": question.text,
            "schema": files.schema,
            "database": str(files.visible),
            "hidden": [str(files.hidden)],
            "query": question.query.sql(),
            "ordered": bool(question.query.order),
            "match": "rows",
            "kind": question.kind,
            "level": KINDS[question.kind].level,
        }
        yield row, question


@dataclass(frozen=True)
class _Files:
    """The two databases of one schema."""

    schema: str
    """Their tables, as the agent is shown them."""
    visible: Path
    hidden: Path


@dataclass
class _Source:
    """Draws questions, and makes the databases that they are about."""

    split: Split
    seed: int
    folder: Path
    _known: set[str] = field(default_factory=set[str])
    """Questions so far, each with its database."""
    _files: dict[str, _Files] = field(default_factory=dict[str, _Files])
    """By the tables of their schema."""

    def __post_init__(self) -> None:
        self._rng = random.Random(f"questions/{self.split}/{self.seed}")
        self._schemas = schemas(self.split, self.seed)

    def question(self, kind: str) -> tuple[Question, _Files]:
        """Return a new question of `kind`."""
        for _ in range(_MAX_TRIES):
            schema = self._rng.choice(self._schemas)
            question, files = ask(kind, Scene(schema, self.split, self._rng)), self._made(schema)
            key = f"{files.visible}: {question.text}"
            if key not in self._known and _is_fair(question, files):
                self._known.add(key)
                return question, files
        raise ValueError(
            f"split {self.split!r} has no more questions of the kind {kind!r} after {len(self._known)}: ask for fewer"
        )

    def _made(self, schema: Schema) -> _Files:
        """Return the databases of a schema, made if need be."""
        key = f"{schema.parent} {schema.child}"
        if key not in self._files:
            visible, hidden = (self._make(schema, side) for side in ("visible", "hidden"))
            self._files[key] = _Files(schema_of(visible), visible, hidden)
        return self._files[key]

    def _make(self, schema: Schema, side: str) -> Path:
        rng = random.Random(f"{side}/{schema.child.name}/{self.seed}")
        contents = script(schema, self.split, rng)
        digest = hashlib.sha256(contents.encode()).hexdigest()[:12]
        name = f"{self.split}-{self.seed}-{schema.child.name}-{side}-{digest}.sqlite"
        path = self.folder.absolute() / name
        if not path.exists():
            _write(path, contents)
        return path


def _write(path: Path, contents: str) -> None:
    """Write a whole database, or none: other processes may be doing the same."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with closing(sqlite3.connect(":memory:")) as connection:
        connection.executescript(contents)
        image = connection.serialize()
    handle, partial = tempfile.mkstemp(dir=path.parent, suffix=".part")
    with os.fdopen(handle, "wb") as file:
        file.write(image)
    Path(partial).replace(path)


def _is_fair(question: Question, files: _Files) -> bool:
    """Whether each file has an answer, another one than the other file, and no mistake gives both."""
    query, paths = question.query.sql(), (files.visible, files.hidden)
    visible, hidden = (run(path, query) for path in paths)
    if visible == hidden or not (_says_something(visible) and _says_something(hidden)):
        return False
    answers, ordered = list(zip(paths, (visible, hidden), strict=True)), bool(question.query.order)
    return not any(
        all(_gives(path, wrong.sql(), rows, ordered=ordered) for path, rows in answers)
        for wrong, _ in mistakes(question.query)
    )


def _gives(path: Path, query: str, wanted: list[Row], *, ordered: bool) -> bool:
    rows = rows_of(path, query)
    return rows is not None and same(wanted, rows, "rows", ordered=ordered)


def _says_something(rows: list[Row]) -> bool:
    return bool(rows) and rows != [(None,)]
