"""The words of the generated databases, and the databases themselves.

A database has two tables: a parent ("library") and a child ("novel"), whose rows each belong to one parent. Invariants, each
checked by a test:

- Tables, columns and values are common words, each one token of the small model's vocabulary wherever a query holds it.
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
        "market district doors rent | fruit colour weight price",
        "field shape trees paths | apple colour sugar size",
        "library borough walls windows | book topic pages price",
        "park climate rules keepers | animal species age height",
        "hospital ward beds staff | patient blood age days",
        "club music lights staff | band style tracks members",
        "port coast depth boats | ship flag load length",
        "company sector profit projects | film theme budget minutes",
        "league country games matches | player position points height",
        "mine metal depth output | robot maker power hours",
        "house style rooms windows | tenant job age bill",
        "school town rooms teachers | student subject marks days",
        "museum era walls objects | picture style weight value",
        "farm state fields animals | vehicle maker speed power",
        "agency country planes staff | flight origin distance delay",
        "factory city workers lines | product material strength price",
        "shop street doors cost | car colour speed power",
        "journal language authors issues | article topic words links",
        "stage quarter lights actors | play author acts minutes",
        "forest climate area trees | bird sound speed weight",
        "menu season pages stars | dish colour sugar cost",
        "project sector budget tasks | tool purpose cost length",
        "college state rooms rent | course subject hours size",
        "lake region area boats | tower shape height weight",
    ),
    "val": (
        "camp surface gates capacity | event format volume reward",
        "ranch soil width roads | wine label acid boxes",
        "castle legend arches stairs | lord shield attacks years",
        "building movement blocks owners | photo filter angle pixels",
    ),
    "test": (
        "church faith steps notes | bishop duty letters walks",
        "track signal stations limits | engine fuel pressure cycles",
        "bank currency assets clients | account category balance rate",
        "planet zone mass radius | satellite class orbit gravity",
        "store brand units entries | shirt pattern buttons inches",
        "river source flow levels | fish family bones spots",
        "office trade phones screens | chair wood parts layers",
        "channel network programs views | host voice questions stories",
    ),
}  # fmt: skip

_WORDS: Mapping[Split, str] = {
    "train": (
        "amber basic black blue brief broad brown central civil clean cold cool daily dark early eastern empty "
        "fine flat fresh full grand green heavy human inner iron large late local plain pure quick quiet white "
        "wild young southern"
    ),
    "val": "bold bright double polar urban wide yellow hard happy final active joint",
    "test": (
        "western frozen orange gray gold ideal native outer purple rare open warm weak tiny north famous fast "
        "neutral normal organic perfect popular"
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
