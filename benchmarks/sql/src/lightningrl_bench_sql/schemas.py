"""The words of the generated databases, and the databases themselves.

A database has two tables: a parent ("library") and a child ("novel"), whose rows each belong to one parent. Invariants, each
checked by a test:

- No table, column, value, name or number of one split is in another; only `name`, the keys' ending `_id` and one-digit
  numbers are in all.
- `script` is a pure function of its arguments; numbers of a column are all different, so that no order has ties.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Split = Literal["train", "val", "test"]

PARENTS, CHILDREN = 6, 18
"""Rows of the two tables."""
PARENT_WORDS, CHILD_WORDS = 3, 4
"""Different words in a text column."""
LARGEST = 499
"""Largest number in a database or a question."""


@dataclass(frozen=True)
class Table:
    """Beside these columns a table has a key `NAME_id` and `name`."""

    name: str
    text: str
    numbers: tuple[str, str]

    @property
    def plural(self) -> str:
        """Its name for several rows."""
        word = self.name
        if word.endswith("y") and word[-2] not in "aeiou":
            return f"{word[:-1]}ies"
        return f"{word}es" if word.endswith(("s", "x", "ch", "sh")) else f"{word}s"

    @property
    def single(self) -> str:
        """Its name for one row, with the article."""
        return f"{'an' if self.name[0] in 'aeiou' else 'a'} {self.name}"


@dataclass(frozen=True)
class Schema:
    """Two tables, and the words of their text columns."""

    parent: Table
    child: Table
    words: Mapping[str, tuple[str, ...]]
    """Table -> what its text column may hold; the same in all databases of one schema and seed."""


MIXES = 5
"""How often the tables to train on are mixed."""
_LINES: Mapping[Split, tuple[str, ...]] = {
    "train": (
        "bakery district ovens rent | cake flavour weight price",
        "orchard valley trees acres | apple variety sugar size",
        "library borough shelves visitors | novel genre pages copies",
        "zoo climate cages keepers | animal diet age height",
        "clinic ward beds nurses | patient blood pulse nights",
        "circus tent seats trailers | clown costume jokes shoes",
        "harbour coast docks depth | vessel cargo crew length",
        "studio suburb cameras rooms | film mood budget minutes",
        "league sport teams matches | player position goals salary",
        "mine ore shafts output | truck maker wheels load",
        "hotel style floors beds | guest country nights bill",
        "school township desks grants | pupil hobby marks absences",
        "museum era halls visitors | statue material weight value",
        "farm county fields acres | tractor maker power hours",
        "airline alliance planes routes | pilot origin flights age",
        "brewery city tanks staff | beer hop strength price",
        "garage street bays fee | car colour speed doors",
        "publisher language editors awards | magazine topic readers issues",
        "theatre quarter seats balconies | play author acts minutes",
        "forest climate trails area | bird song eggs wingspan",
        "restaurant cuisine tables stars | dish spice calories cost",
        "company sector branches profit | machine purpose power repairs",
        "college state labs tuition | course subject credits hours",
        "island ocean beaches villages | lighthouse lamp steps height",
    ),
    "val": (
        "stadium surface gates capacity | concert band tickets volume",
        "vineyard soil barrels hectares | wine grape acidity bottles",
        "castle dynasty towers moats | knight weapon duels armour",
        "gallery movement walls donors | painting technique width offers",
    ),
    "test": (
        "temple religion bells pillars | monk duty prayers robes",
        "railway gauge stations tunnels | engine fuel pistons torque",
        "bank currency vaults loans | account category balance withdrawals",
        "observatory hemisphere domes lenses | comet class orbit brightness",
        "market festival stalls traders | carpet pattern knots fringe",
        "aquarium sea pools divers | shark habitat fins teeth",
        "workshop trade benches drills | chair wood legs screws",
        "channel format episodes viewers | host accent interviews fans",
    ),
}  # fmt: skip

_WORDS: Mapping[Split, str] = {
    "train": (
        "amber brisk calm coral crisp dusty early eastern faint fresh gentle golden grand green hollow humble iron "
        "ivory jolly large lemon little lunar maple mild modern noble northern olive plain purple quiet rapid royal "
        "rustic silver simple stone sunny velvet"
    ),
    "val": "ancient bold bright copper foggy marble narrow polar scarlet tidal urban wooden",
    "test": (
        "azure bronze crimson distant elegant frozen gloomy harsh indigo jade lively mellow nimble opaque pale remote "
        "solar tender vivid western"
    ),
}
_NAME_STARTS: Mapping[Split, str] = {
    "train": "Al Be Co Da El Fa Gi Ho Im Jo Ka Le",
    "val": "Mi Na Ol Pe",
    "test": "Qui Ro Su Ta Um Vi We Ya",
}
_NAME_ENDS = ["ra", "lin", "mo", "ten", "vis", "dor", "nel", "sa", "rik", "ba"]

_HELD_OUT_REMAINDERS: Mapping[int, Split] = {5: "val", 11: "test"}
"""Numbers of this remainder modulo 12 belong to that split alone, all others to train."""


def schemas(split: Split, seed: int) -> list[Schema]:
    """Return the schemas of a split; `seed` chooses the words of their text columns.

    Those to train on are followed by `MIXES` times as many, in which each table has columns of others: who knows which
    columns a library has need not read the schema.
    """
    rng = random.Random(f"words/{split}/{seed}")
    pool = _WORDS[split].split()
    parents, children = (
        [_table(line.split(" | ")[side]) for line in _LINES[split]] for side in (0, 1)
    )
    pairs = list(zip(parents, children, strict=True))
    if split == "train":
        mixer = random.Random("mixes")
        for _ in range(MIXES):
            pairs += zip(_mixed(parents, mixer), _mixed(children, mixer), strict=True)
    found: list[Schema] = []
    for parent, child in pairs:
        words = rng.sample(pool, PARENT_WORDS + CHILD_WORDS)
        texts = {parent.name: tuple(words[:PARENT_WORDS]), child.name: tuple(words[PARENT_WORDS:])}
        found.append(Schema(parent, child, texts))
    return found


def _mixed(tables: list[Table], rng: random.Random) -> list[Table]:
    """The tables in another order, each with the columns of others."""
    names = rng.sample([one.name for one in tables], len(tables))
    texts = rng.sample([one.text for one in tables], len(tables))
    all_numbers = [number for one in tables for number in one.numbers]
    while True:
        drawn = rng.sample(all_numbers, len(all_numbers))
        both = list(zip(drawn[::2], drawn[1::2], strict=True))
        if all(first != second for first, second in both):
            return [Table(*of_one) for of_one in zip(names, texts, both, strict=True)]


def numbers(split: Split) -> list[int]:
    """Return the numbers from 10 on that databases and questions of a split may hold."""
    return [n for n in range(10, LARGEST + 1) if _HELD_OUT_REMAINDERS.get(n % 12, "train") == split]


def names(split: Split) -> list[str]:
    """Return the names that rows of a split may have."""
    return [start + end for start in _NAME_STARTS[split].split() for end in _NAME_ENDS]


def words(split: Split) -> list[str]:
    """Return the words that text columns of a split may hold."""
    return _WORDS[split].split()


def script(schema: Schema, split: Split, rng: random.Random) -> str:
    """Return SQL that makes one database of `schema`, its contents drawn with `rng`."""
    parent, child = schema.parent, schema.child
    called = rng.sample(names(split), PARENTS + CHILDREN)
    # One parent stays without children.
    owners = rng.sample(range(1, PARENTS + 1), PARENTS - 1)
    owned = owners + rng.choices(owners, k=CHILDREN - len(owners))
    rng.shuffle(owned)
    lines = [_create(parent), _create(child, parent)]
    rows = _rows(schema, parent, split, called[:PARENTS], rng)
    lines += [f"INSERT INTO {parent.name} VALUES ({row});" for row in rows]
    rows = _rows(schema, child, split, called[PARENTS:], rng)
    lines += [
        f"INSERT INTO {child.name} VALUES ({row}, {owner});"
        for row, owner in zip(rows, owned, strict=True)
    ]
    return "\n".join(lines)


def _table(line: str) -> Table:
    name, text, *both = line.split()
    first, second = both
    return Table(name, text, (first, second))


def _create(table: Table, parent: Table | None = None) -> str:
    first, second = table.numbers
    columns = [
        f"{table.name}_id INTEGER PRIMARY KEY",
        "name TEXT",
        f"{table.text} TEXT",
        f"{first} INTEGER",
        f"{second} INTEGER",
    ]
    if parent is not None:
        columns.append(f"{parent.name}_id INTEGER REFERENCES {parent.name}")
    return f"CREATE TABLE {table.name} ({', '.join(columns)});"


def _rows(
    schema: Schema, table: Table, split: Split, called: list[str], rng: random.Random
) -> list[str]:
    """Return the values of a table's own columns, a row each; every word occurs."""
    count = len(called)
    texts = list(schema.words[table.name])
    texts += rng.choices(texts, k=count - len(texts))
    rng.shuffle(texts)
    first, second = (rng.sample(numbers(split), count) for _ in table.numbers)
    return [
        f"{key}, '{name}', '{text}', {one}, {other}"
        for key, (name, text, one, other) in enumerate(
            zip(called, texts, first, second, strict=True), start=1
        )
    ]
