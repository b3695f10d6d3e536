"""Kinds of questions: how each is asked, and the query that answers it.

A question is an opening ("Count the {things} {form}.") with a form in it ("whose {column} is {value}"). Invariant, checked by
a test: every opening and every form of a kind occurs in every split, and no combination of the two is in two splits.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from lightningrl_bench_sql.schemas import Schema, Split, Table, numbers

WAYS = 4
"""Openings of a kind, and forms of a kind."""
AGGREGATES: Mapping[str, str] = {
    "AVG": "average",
    "SUM": "total",
    "MAX": "highest",
    "MIN": "lowest",
}
_COMPARISONS = ((">", "above"), (">", "over"), ("<", "below"), ("<", "under"))


@dataclass(frozen=True)
class Query:
    """A query by its clauses; an empty text, or 0, is a clause that it lacks."""

    select: tuple[str, ...]
    table: str
    join: str = ""
    """The parent's table, joined by its key."""
    where: str = ""
    group: str = ""
    having: str = ""
    order: str = ""
    limit: int = 0

    def sql(self) -> str:
        """Return it as text."""
        key = f"{self.join}_id"
        clauses = (
            (True, f"SELECT {', '.join(self.select)} FROM {self.table}"),
            (self.join, f"JOIN {self.join} ON {self.table}.{key} = {self.join}.{key}"),
            (self.where, f"WHERE {self.where}"),
            (self.group, f"GROUP BY {self.group}"),
            (self.having, f"HAVING {self.having}"),
            (self.order, f"ORDER BY {self.order}"),
            (self.limit, f"LIMIT {self.limit}"),
        )
        return " ".join(text for there, text in clauses if there)


@dataclass(frozen=True)
class Scene:
    """Where a question is drawn."""

    schema: Schema
    split: Split
    rng: random.Random

    def table(self) -> Table:
        """Either table."""
        return self.rng.choice((self.schema.parent, self.schema.child))

    def condition(self, table: Table) -> tuple[str, str, str]:
        """A column, what it is to be in words, and in SQL behind the column."""
        if self.rng.random() < 0.5:
            word = self.rng.choice(self.schema.words[table.name])
            return table.text, word, f"= '{word}'"
        sign, word = self.rng.choice(_COMPARISONS)
        number = self.rng.choice(numbers(self.split))
        return self.rng.choice(table.numbers), f"{word} {number}", f"{sign} {number}"

    def aggregate(self, table: Table) -> tuple[str, str, str]:
        """A function, its name in words, and a column for it."""
        function = self.rng.choice(list(AGGREGATES))
        return function, AGGREGATES[function], self.rng.choice(table.numbers)


Drawn = tuple[dict[str, str], Query]
"""What stands in the places of a question's text, and its query."""


@dataclass(frozen=True)
class Kind:
    """One kind of questions."""

    level: int
    """1: one table; 2: join or group; 3: nested, or several of these."""
    openings: tuple[str, ...]
    forms: tuple[str, ...]
    draw: Callable[[Scene], Drawn]


@dataclass(frozen=True)
class Question:
    """One question and its query."""

    kind: str
    text: str
    query: Query
    wording: tuple[int, int]
    """Numbers of its opening and its form."""


def wordings(split: Split) -> list[tuple[int, int]]:
    """Return the combinations of opening and form that a split asks by: 8 to train on, 4 for each other split."""
    remainders: Mapping[Split, tuple[int, ...]] = {"val": (0,), "test": (1,), "train": (2, 3)}
    return [
        (opening, form)
        for opening in range(WAYS)
        for form in range(WAYS)
        if (opening + form) % WAYS in remainders[split]
    ]


def ask(kind: str, scene: Scene) -> Question:
    """Return one question of `kind`."""
    chosen = KINDS[kind]
    places, query = chosen.draw(scene)
    wording = scene.rng.choice(wordings(scene.split))
    form = chosen.forms[wording[1]].format(**places)
    return Question(kind, chosen.openings[wording[0]].format(form=form, **places), query, wording)


def _filtered(scene: Scene, select: Callable[[Table], tuple[str, ...]]) -> Drawn:
    table = scene.table()
    column, value, test = scene.condition(table)
    places = {"things": table.plural, "column": column, "value": value}
    return places, Query(select(table), table.name, where=f"{column} {test}")


def _count(scene: Scene) -> Drawn:
    return _filtered(scene, lambda _: ("COUNT(*)",))


def _list(scene: Scene) -> Drawn:
    return _filtered(scene, lambda _: ("name",))


def _aggregate(scene: Scene) -> Drawn:
    table = scene.table()
    function, said, number = scene.aggregate(table)
    column, value, test = scene.condition(table)
    places = {"things": table.plural, "column": column, "value": value}
    query = Query((f"{function}({number})",), table.name, where=f"{column} {test}")
    return {**places, "aggregate": said, "number": number}, query


def _top(scene: Scene) -> Drawn:
    table = scene.table()
    column = scene.rng.choice(table.numbers)
    most = scene.rng.choice(("highest", "lowest"))
    count = scene.rng.randint(2, 4)
    order = f"{column} DESC" if most == "highest" else column
    places = {"things": table.plural, "column": column, "most": most, "count": str(count)}
    return places, Query(("name",), table.name, order=order, limit=count)


def _joined(scene: Scene, select: Callable[[Table], tuple[str, ...]]) -> Drawn:
    parent, child = scene.schema.parent, scene.schema.child
    column, value, test = scene.condition(parent)
    places = {
        "things": child.plural,
        "parent": parent.name,
        "a_parent": parent.single,
        "column": column,
        "value": value,
    }
    query = Query(
        select(child), child.name, join=parent.name, where=f"{parent.name}.{column} {test}"
    )
    return places, query


def _join_count(scene: Scene) -> Drawn:
    return _joined(scene, lambda _: ("COUNT(*)",))


def _join_list(scene: Scene) -> Drawn:
    return _joined(scene, lambda child: (f"{child.name}.name",))


def _join_aggregate(scene: Scene) -> Drawn:
    function, said, number = scene.aggregate(scene.schema.child)
    places, query = _joined(scene, lambda child: (f"{function}({child.name}.{number})",))
    return {**places, "aggregate": said, "number": number}, query


def _group_count(scene: Scene) -> Drawn:
    table = scene.table()
    places = {"things": table.plural, "column": table.text}
    return places, Query((table.text, "COUNT(*)"), table.name, group=table.text)


def _group_aggregate(scene: Scene) -> Drawn:
    table = scene.table()
    function, said, number = scene.aggregate(table)
    places = {"things": table.plural, "column": table.text, "aggregate": said, "number": number}
    return places, Query(
        (table.text, f"{function}({number})"), table.name, group=table.text
    )  # fmt: skip


def _above_average(scene: Scene) -> Drawn:
    table = scene.table()
    column = scene.rng.choice(table.numbers)
    sign, said = scene.rng.choice(_COMPARISONS)
    places = {"things": table.plural, "column": column, "value": f"{said} the average"}
    where = f"{column} {sign} (SELECT AVG({column}) FROM {table.name})"
    return places, Query(("name",), table.name, where=where)


def _childless(scene: Scene) -> Drawn:
    parent, child = scene.schema.parent, scene.schema.child
    places = {"things": parent.plural, "child": child.name, "children": child.plural}
    key = f"{parent.name}_id"
    where = f"{key} NOT IN (SELECT {key} FROM {child.name})"
    return places, Query(("name",), parent.name, where=where)


def _having(scene: Scene) -> Drawn:
    table, least = scene.schema.child, scene.rng.randint(4, 7)
    places = {"things": table.plural, "column": table.text, "count": str(least)}
    return places, Query(
        (table.text,), table.name, group=table.text, having=f"COUNT(*) >= {least}"
    )  # fmt: skip


def _join_group(scene: Scene) -> Drawn:
    parent, child = scene.schema.parent, scene.schema.child
    function, said, number = scene.aggregate(child)
    column = f"{parent.name}.{parent.text}"
    places = {
        "things": child.plural,
        "column": f"{parent.name} {parent.text}",
        "aggregate": said,
        "number": number,
    }
    select = (column, f"{function}({child.name}.{number})")
    return places, Query(select, child.name, join=parent.name, group=column)


_COUNT = (
    "How many {things} {form} are there?",
    "Count the {things} {form}.",
    "What is the number of {things} {form}?",
    "Give the number of {things} {form}.",
)
_LIST = (
    "List the names of the {things} {form}.",
    "What are the names of the {things} {form}?",
    "Name the {things} {form}.",
    "Give the names of all {things} {form}.",
)
_AGGREGATE = (
    "What is the {aggregate} {number} of the {things} {form}?",
    "Find the {aggregate} {number} of the {things} {form}.",
    "Give the {aggregate} {number} of all {things} {form}.",
    "Tell me the {aggregate} {number} of the {things} {form}.",
)
_TOP = (
    "List the names of the {count} {things} {form}.",
    "What are the names of the {count} {things} {form}?",
    "Name the {count} {things} {form}.",
    "Give the names of the {count} {things} {form}.",
)
_EACH = (
    "For each {column}, {form}",
    "For every {column}, {form}",
    "By {column}, {form}",
    "Per {column}, {form}",
)
_WHICH = (
    "Which {column} {form}?",
    "Give each {column} that {form}.",
    "List every {column} that {form}.",
    "Tell me which {column} {form}.",
)

_OWN = (
    "with {column} {value}",
    "whose {column} is {value}",
    "that have {column} {value}",
    "where {column} is {value}",
)
_PARENTS = (
    "whose {parent} has {column} {value}",
    "of {a_parent} with {column} {value}",
    "that belong to {a_parent} whose {column} is {value}",
    "from {a_parent} where {column} is {value}",
)
_MOST = (
    "with the {most} {column}, {most} first",
    "that have the {most} {column}, {most} first",
    "of {most} {column}, {most} first",
    "where {column} is {most}, {most} first",
)
_COUNTED = (
    "how many {things} are there?",
    "count the {things}.",
    "give the number of {things}.",
    "what is the number of {things}?",
)
_MEASURED = (
    "what is the {aggregate} {number} of the {things}?",
    "find the {aggregate} {number} of the {things}.",
    "give the {aggregate} {number} of the {things}.",
    "tell me the {aggregate} {number} of the {things}.",
)
_NONE = (
    "without any {children}",
    "that have no {children}",
    "with no {children}",
    "to which no {child} belongs",
)
_AT_LEAST = (
    "has at least {count} {things}",
    "is that of at least {count} {things}",
    "occurs with at least {count} {things}",
    "belongs to at least {count} {things}",
)

KINDS: Mapping[str, Kind] = {
    "count": Kind(1, _COUNT, _OWN, _count),
    "list": Kind(1, _LIST, _OWN, _list),
    "aggregate": Kind(1, _AGGREGATE, _OWN, _aggregate),
    "top": Kind(1, _TOP, _MOST, _top),
    "join_count": Kind(2, _COUNT, _PARENTS, _join_count),
    "join_list": Kind(2, _LIST, _PARENTS, _join_list),
    "join_aggregate": Kind(2, _AGGREGATE, _PARENTS, _join_aggregate),
    "group_count": Kind(2, _EACH, _COUNTED, _group_count),
    "group_aggregate": Kind(2, _EACH, _MEASURED, _group_aggregate),
    "above_average": Kind(3, _LIST, _OWN, _above_average),
    "childless": Kind(3, _LIST, _NONE, _childless),
    "having": Kind(3, _WHICH, _AT_LEAST, _having),
    "join_group": Kind(3, _EACH, _MEASURED, _join_group),
}
"""Level 1 is the smallest, so that with a higher level at least half of the questions need join, group or nesting."""
