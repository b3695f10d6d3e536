"""Ways to get a query wrong, each with what is to be changed.

Invariant: pure functions. No generated question has one of them for a right answer: `tasks` draws until that is so.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace

from lightningrl_bench_sql.questions import AGGREGATES, Query

_NAMES = re.compile(r"'[^']*'|\b([a-z][a-z_]{2,})\b")
"""Of tables and columns in a query; a text in quotes matches with an empty group."""

Mistake = tuple[Query, str]
"""A wrong query, and what is to be changed in it."""


def mistakes(query: Query) -> list[Mistake]:
    """Return the mistakes that can be made with a query, at least two."""
    return [*_of_select(query), *_of_condition(query), *_of_clauses(query)]


def misreadings(query: Query) -> list[str]:
    """Return the query with one of its tables or columns misread by a letter, for each: no table has that name."""
    text = query.sql()
    names = dict.fromkeys(one for one in _NAMES.findall(text) if one and one != "name")
    return [re.sub(rf"\b{one}\b", _less_a_letter(one), text) for one in names]


def _less_a_letter(name: str) -> str:
    middle = len(name) // 2
    return name[:middle] + name[middle + 1 :]


def _of_select(query: Query) -> Iterator[Mistake]:
    """Wrong columns, and wrong functions of them."""
    last = query.select[-1]
    wanted = f"it must select {', '.join(query.select)}"
    before = query.select[:-1]
    if last == "COUNT(*)":
        yield (
            replace(query, select=(*before, "name" if not query.join else f"{query.table}.name")),
            wanted,
        )
    elif last.endswith("name"):
        yield replace(query, select=("COUNT(*)",)), wanted
    for function in AGGREGATES:
        if last.startswith(function):
            others = [other for other in AGGREGATES if other != function]
            for other in others:
                yield replace(query, select=(*before, last.replace(function, other))), wanted
    if before:
        yield replace(query, select=(last,)), wanted


def _of_condition(query: Query) -> Iterator[Mistake]:
    """Wrong rows."""
    if not query.where:
        return
    wanted = f"the condition must be {query.where}"
    yield replace(query, where=""), "the condition is missing"
    for sign, other in ((" > ", " < "), (" < ", " > "), (" NOT IN ", " IN ")):
        if sign in query.where:
            yield replace(query, where=query.where.replace(sign, other)), wanted
    if "SELECT AVG" in query.where:
        yield replace(query, where=re.sub(r"\(SELECT (.*?) FROM .*\)", r"\1", query.where)), wanted


def _of_clauses(query: Query) -> Iterator[Mistake]:
    """Whole clauses that are missing or turned round."""
    if query.join:
        bare = replace(query, join="", where=query.where.removeprefix(f"{query.join}."))
        yield replace(query, join=""), f"JOIN {query.join} is missing"
        yield bare, f"JOIN {query.join} is missing"
    if query.group:
        yield replace(query, group="", having=""), f"GROUP BY {query.group} is missing"
    if query.having:
        yield replace(query, having=""), f"HAVING {query.having} is missing"
    if query.order:
        turned = (
            query.order.removesuffix(" DESC") if " DESC" in query.order else f"{query.order} DESC"
        )
        yield replace(query, order=turned), f"it must be ORDER BY {query.order}"
        yield replace(query, order=""), f"ORDER BY {query.order} is missing"
        yield replace(query, limit=0), f"LIMIT {query.limit} is missing"
