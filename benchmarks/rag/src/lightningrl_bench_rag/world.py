"""Generated corpora: invented people, towns, companies and novels, and one passage for each fact about them.

Invariants, each checked by a test:

- A world is a pure function of its split and seed, and nothing in it is of this world, so nothing can be known beforehand.
- Worlds of different splits share no name, nor a word of one, but for kinds ("Motors") and "The".
- A relation gives an entity one value. Those between entities of one kind give each value once, so that at most one passage
  has all words of a query and means its reverse.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

Split = Literal["train", "val", "test"]
Kind = Literal["person", "town", "company", "novel", "school"]
Relation = str

RELATIONS: Mapping[Kind, Mapping[Relation, Kind]] = {
    "company": {"founder": "person", "director": "person", "seat": "town", "owner": "company"},
    "novel": {
        "author": "person",
        "translator": "person",
        "publisher": "company",
        "setting": "town",
    },
    "person": {"birthplace": "town", "teacher": "person", "school": "school"},
    "town": {"mayor": "person", "port": "town"},
    "school": {},
}
"""Kind of an entity -> its relations, and the kind of their values."""

SIZES: Mapping[Kind, int] = {"person": 120, "town": 60, "company": 60, "novel": 60, "school": 30}
"""Entities of each kind in a world."""

SHARE_A_NAME = 3
"""How many people have one family name, how many companies one first word: the nearest distractors."""

# fmt: off
_SYLLABLES = (
    "ba", "bel", "bor", "cal", "dan", "dor", "el", "fal", "fen", "gar", "hal", "hol", "jan", "ka",
    "kel", "lan", "lor", "mar", "mi", "mon", "nel", "nor", "ol", "pel", "per", "ra", "ros", "sal",
    "sen", "ta", "tel", "tor", "ul", "val", "vin", "wes", "yor", "zan",
)
# fmt: on
_COMPANIES = ("Motors", "Foods", "Mills", "Films", "Tools", "Wines")


@dataclass(frozen=True, slots=True)
class World:
    """The entities of a world and what is so about them."""

    entities: Mapping[Kind, Sequence[str]]
    facts: Mapping[tuple[str, Relation], str]
    """Entity and relation -> value."""
    passages: Sequence[str]
    """A sentence for each fact, in no order."""


def query(relation: Relation, entity: str) -> str:
    """Return the words that name a fact: in questions, in passages, and in a good search."""
    return f"{relation} of {entity}"


def read(passage: str, asked: str) -> str | None:
    """Return the value that a passage gives for `query(relation, entity)`. `None`: it speaks of something else."""
    first, last = f"The {asked} is ", f" is the {asked}."
    if passage.startswith(first):
        return passage.removeprefix(first).removesuffix(".")
    return passage.removesuffix(last) if passage.endswith(last) else None


def corpus_of(split: Split, seed: int) -> str:
    """Return the name of a world's corpus."""
    return f"generated/{split}/{seed}"


def passages(corpus: str) -> Sequence[str]:
    """Return the passages of a corpus named "generated/SPLIT/SEED".

    Raises:
        ValueError: the name is not of that form.
    """
    _, _, rest = corpus.partition("/")
    split, _, seed = rest.partition("/")
    if split not in get_args(Split) or not seed.isdecimal():
        raise ValueError(f"{corpus!r} names no corpus: expected generated/SPLIT/SEED")
    return world(split, int(seed)).passages


@functools.lru_cache(maxsize=16)
def world(split: Split, seed: int) -> World:
    """Return the world of a split and seed."""
    rng = random.Random(f"world/{split}/{seed}")
    entities = _entities(_words(split), rng)
    facts: dict[tuple[str, Relation], str] = {}
    for kind, relations in RELATIONS.items():
        for relation, of in relations.items():
            for entity, value in zip(
                entities[kind], _values(kind, entities[kind], of, entities[of], rng), strict=True
            ):
                facts[entity, relation] = value
    sentences = [
        f"The {query(relation, entity)} is {value}."
        if rng.random() < 0.5
        else f"{value} is the {query(relation, entity)}."
        for (entity, relation), value in facts.items()
    ]
    rng.shuffle(sentences)
    return World(entities, facts, tuple(sentences))


def _values(
    kind: Kind, entities: Sequence[str], of: Kind, choice: Sequence[str], rng: random.Random
) -> list[str]:
    """A value for each entity; within one kind a permutation that leaves none to itself."""
    if kind != of:
        return rng.choices(choice, k=len(entities))
    order = rng.sample(range(len(entities)), len(entities))
    after = dict(zip(order, [*order[1:], order[0]], strict=True))
    return [entities[after[place]] for place in range(len(entities))]


def _entities(words: Sequence[str], rng: random.Random) -> dict[Kind, list[str]]:
    """Names from the words of a split, each word in names of one kind alone."""
    pool = iter(rng.sample(words, len(words)))

    def some(count: int) -> list[str]:
        return [next(pool) for _ in range(count)]

    first_names = some(24)
    return {
        "person": [
            f"{first} {family}"
            for family in some(SIZES["person"] // SHARE_A_NAME)
            for first in rng.sample(first_names, SHARE_A_NAME)
        ],
        "town": some(SIZES["town"]),
        "company": [
            f"{word} {kind}"
            for word in some(SIZES["company"] // SHARE_A_NAME)
            for kind in rng.sample(_COMPANIES, SHARE_A_NAME)
        ],
        "novel": [f"The {word}" for word in some(SIZES["novel"])],
        "school": [f"{word} College" for word in some(SIZES["school"])],
    }


@functools.cache
def _words(split: Split) -> tuple[str, ...]:
    """The name words of a split: all pairs of syllables, dealt out to the splits once and for all."""
    pairs = [f"{a}{b}".capitalize() for a in _SYLLABLES for b in _SYLLABLES if a != b]
    words = sorted(set(pairs))
    random.Random("words").shuffle(words)
    return tuple(words[get_args(Split).index(split) :: len(get_args(Split))])
