"""Generated questions of two to four hops over a generated corpus.

A hop asks a relation of an entity; its value is the next hop's entity: "Who is the mayor of the birthplace of Anda Kelvin?"
takes the searches "birthplace of Anda Kelvin" and "mayor of Felnor". A question's *chain* is the list of its relations.
Invariants, each checked by a test:

- `generate(split, count, seed, level)` is a pure function, and no question occurs twice in its list.
- Splits share no entity (`world.py`) and no chain. Pairs of neighbouring relations are dealt out: a chain of `train` has
  training pairs alone, one of `val` or `test` has a pair of that split and none of the other. Every relation is in training
  chains.
- The answer is not in the question, no entity is met twice on the way, and each hop's search finds its passage.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, get_args

from lightningrl_bench_rag.search import index_of
from lightningrl_bench_rag.world import (
    RELATIONS,
    Kind,
    Relation,
    Split,
    World,
    corpus_of,
    query,
    read,
    world,
)

Level = Literal[1, 2, 3]
Chain = tuple[Relation, ...]

HOPS: Mapping[Level, tuple[int, ...]] = {1: (2,), 2: (2, 3), 3: (3, 4)}
"""Level -> how many hops its questions have."""

_ASKED: Mapping[Kind, str] = {
    "person": "Who",
    "town": "Which town",
    "company": "Which company",
    "school": "Which school",
}
_HELD_OUT: Mapping[int, Split] = {2: "val", 5: "test"}
"""Pairs of relations at these places, modulo 6, belong to that split."""
_MAX_TRIES = 200
"""Drawings for one new question before the split is declared exhausted."""


@dataclass(frozen=True, slots=True)
class Question:
    """A question and how it is solved."""

    text: str
    chain: Chain
    entities: tuple[str, ...]
    """That which the first hop asks about, then each hop's value; the last is the answer."""

    @property
    def queries(self) -> list[str]:
        """The searches that lead to the answer."""
        return [query(one, of) for one, of in zip(self.chain, self.entities, strict=False)]


def generate(split: Split, count: int, seed: int, level: Level = 1) -> list[dict[str, Any]]:
    """Return `count` different questions of `split` as JSON rows, the same for the same arguments.

    A row has `id`, `question`, `answer`, `kind` (its chain), `hops` (each with `query` and `answer`) and `corpus`; an agent
    is shown `question` only. All rows of one split and seed have one corpus.

    Raises:
        ValueError: for an unknown split or level, a negative count, or more questions than there are.
    """
    if split not in get_args(Split):
        raise ValueError(f"unknown split {split!r}: choose one of {', '.join(get_args(Split))}")
    if level not in get_args(Level):
        raise ValueError(f"unknown level {level!r}: choose one of {get_args(Level)}")
    if count < 0:
        raise ValueError(f"count must not be negative, got {count}")
    rng = random.Random(f"{split}/{seed}")
    found: dict[str, Question] = {}
    while len(found) < count:
        new = next((one for one in _tries(split, seed, level, rng) if one.text not in found), None)
        if new is None:
            raise ValueError(
                f"split {split!r} has no more than about {len(found)} questions: ask for fewer"
            )
        found[new.text] = new
    return [_row(number, one, split, seed) for number, one in enumerate(found.values())]


def draw(split: Split, seed: int, level: Level, rng: random.Random) -> Question:
    """Return a question about the world of `split` and `seed`; every chain of a length is equally likely."""
    there = world(split, seed)
    while True:
        kind, chain = rng.choice(chains(split, rng.choice(HOPS[level])))
        entities = _follow(there, rng.choice(there.entities[kind]), chain)
        of = " of the ".join(reversed(chain))
        asked = _ASKED[_kind(kind, chain)]
        question = Question(f"{asked} is the {of} of {entities[0]}?", chain, entities)
        if len(set(entities)) == len(entities) and _answerable(question, split, seed):
            return question


def _answerable(question: Question, split: Split, seed: int) -> bool:
    """Whether each of its searches finds the passage that has the value."""
    index = index_of(corpus_of(split, seed))
    return all(
        value in [read(passage, asked) for passage in index.search(asked)]
        for asked, value in zip(question.queries, question.entities[1:], strict=True)
    )


@functools.cache
def chains(split: Split, hops: int) -> Sequence[tuple[Kind, Chain]]:
    """Return the chains of a split with that many hops, with the kind of entity that each begins at."""
    others = {"val", "test"} - {split}
    found: list[tuple[Kind, Chain]] = []
    for kind, chain in (pair for start in RELATIONS for pair in _chains(start, hops)):
        owners = {_owner()[pair] for pair in pairwise(chain)}
        if not owners & others and split in owners:
            found.append((kind, chain))
    return tuple(found)


def _chains(start: Kind, hops: int) -> Iterator[tuple[Kind, Chain]]:
    if hops == 0:
        yield start, ()
        return
    for relation, of in RELATIONS[start].items():
        for _, rest in _chains(of, hops - 1):
            yield start, (relation, *rest)


@functools.cache
def _owner() -> Mapping[tuple[Relation, Relation], Split]:
    """Pair of neighbouring relations -> the split that it belongs to."""
    pairs = [chain for start in RELATIONS for _, chain in _chains(start, 2)]
    return {
        (first, second): _HELD_OUT.get(place % 6, "train")
        for place, (first, second) in enumerate(pairs)
    }


def _follow(there: World, start: str, chain: Chain) -> tuple[str, ...]:
    entities = [start]
    for relation in chain:
        entities.append(there.facts[entities[-1], relation])
    return tuple(entities)


def _kind(start: Kind, chain: Chain) -> Kind:
    """The kind of what a chain ends at."""
    for relation in chain:
        start = RELATIONS[start][relation]
    return start


def _tries(split: Split, seed: int, level: Level, rng: random.Random) -> Iterator[Question]:
    for _ in range(_MAX_TRIES):
        yield draw(split, seed, level, rng)


def _row(number: int, question: Question, split: Split, seed: int) -> dict[str, Any]:
    return {
        "id": f"{split}-{seed}-{number}",
        "question": question.text,
        "answer": question.entities[-1],
        "kind": "/".join(question.chain),
        "hops": [
            {"query": asked, "answer": value}
            for asked, value in zip(question.queries, question.entities[1:], strict=True)
        ],
        "corpus": corpus_of(split, seed),
    }
