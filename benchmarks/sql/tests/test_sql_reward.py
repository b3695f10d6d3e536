"""The rewards and the scorers, with the cases that are published about the official ones."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from lightningrl_bench_sql.database import QueryError, Row
from lightningrl_bench_sql.reward import execution_match, told_apart
from lightningrl_bench_sql.scoring import Match, prepared, same

# Six of the rows of `concert_singer`, as an issue about the scorer writes them down
# (taoyds/test-suite-sql-eval, issue 25): three concerts in each of two years.
CONCERTS = """
CREATE TABLE stadium (stadium_id INTEGER PRIMARY KEY, name TEXT);
INSERT INTO stadium VALUES (1, 'Stark''s Park'), (2, 'Somerset Park'), (7, 'Glebe Park'),
    (9, 'Balmoor'), (10, 'Bayview');
CREATE TABLE concert (concert_id INTEGER PRIMARY KEY, concert_name TEXT, theme TEXT, stadium_id TEXT, year TEXT);
INSERT INTO concert VALUES (1, 'Auditions', 'Free choice', 1, 2014), (2, 'Super bootcamp', 'Free choice 2', 2, 2014),
    (3, 'Home Visits', 'Bleeding Love', 2, 2015), (4, 'Week 1', 'Wide Awake', 10, 2014),
    (5, 'Week 1', 'Happy Tonight', 9, 2015), (6, 'Week 2', 'Party All Night', 7, 2015);
"""


@pytest.fixture
def task(tmp_path: Path) -> dict[str, Any]:
    visible, hidden = tmp_path / "visible.sqlite", tmp_path / "hidden.sqlite"
    for path, more in (
        (visible, ""),
        (hidden, "INSERT INTO concert VALUES (7, 'X', 'Y', 1, 2016);"),
    ):
        with closing(sqlite3.connect(path)) as connection:
            connection.executescript(CONCERTS + more)
    return {
        "query": "SELECT COUNT(*) FROM concert",
        "database": str(visible),
        "hidden": [str(hidden)],
        "ordered": False,
        "match": "rows",
    }


@pytest.mark.parametrize(
    ("output", "reward", "format_"),
    [
        ("SELECT COUNT(*) FROM concert", 1.0, 1.0),
        ("select count(concert_id) from concert;", 1.0, 1.0),
        ("SELECT 6", 0.0, 1.0),  # right in the visible file alone
        ("SELECT COUNT(*) FROM stadium", 0.0, 1.0),
        ("SELECT COUNT(*) FROM concerts", 0.0, 0.0),
        ("six", 0.0, 0.0),
        ("DROP TABLE concert", 0.0, 0.0),
        ("", 0.0, 0.0),
        (None, 0.0, 0.0),
        (6, 0.0, 0.0),
    ],
)
def test_a_query_must_be_right_on_every_file(
    task: dict[str, Any], output: object, reward: float, format_: float
) -> None:
    assert execution_match(task, output, None) == reward
    accuracy = {"accuracy": reward} if format_ else {}
    told = {"final": reward, "format": format_, **accuracy}
    assert told_apart(task, output, None) == told


def test_a_task_whose_own_query_fails_is_no_fault_of_the_model(task: dict[str, Any]) -> None:
    with pytest.raises(QueryError, match="no such table: concerts"):
        execution_match({**task, "query": "SELECT * FROM concerts"}, "SELECT 1", None)


@pytest.mark.parametrize(
    ("wanted", "found", "ordered", "equal"),
    [
        # What `result_eq` of the test suites' scorer documents: bags of rows, in any order of columns.
        ([], [], False, True),
        ([], [(1,)], False, False),
        ([(1,), (2,)], [(2,), (1,)], False, True),
        ([(1,), (2,)], [(2,), (1,)], True, False),
        ([(1,), (1,), (2,)], [(1,), (2,), (2,)], False, False),
        ([(1,), (1,), (2,)], [(1,), (2,)], False, False),
        ([(1, "a"), (2, "b")], [("a", 1), ("b", 2)], False, True),
        ([(1, "a"), (2, "b")], [("a", 1), ("b", 2)], True, True),
        ([(1, "a"), (2, "b")], [("b", 1), ("a", 2)], False, False),
        ([(1, "a")], [(1,)], False, False),
        ([(1, None)], [(None, 1)], False, True),
        ([(1,)], [(1.0,)], False, True),
        ([(1,)], [("1",)], False, False),
        ([(1, 2), (2, 1)], [(1, 1), (2, 2)], False, False),
        ([tuple(range(12))] * 3, [tuple(reversed(range(12)))] * 3, True, True),
        ([(0,) * 12] * 3, [(0,) * 11 + (1,)] * 3, False, False),
    ],
)
def test_rows_are_compared_as_the_test_suites_do(
    wanted: list[Row], found: list[Row], ordered: bool, equal: bool
) -> None:
    assert same(wanted, found, "spider", ordered=ordered) == equal
    assert same(wanted, found, "rows", ordered=ordered) == equal


@pytest.mark.parametrize(
    ("wanted", "found", "equal"),
    [
        # AlibabaResearch/DAMO-ConvAI, issue 177: neither duplicates nor the order of rows count.
        ([("apple",), ("pear",)], [("apple",), ("apple",), ("pear",)], True),
        ([("apple",), ("pear",)], [("pear",), ("apple",)], True),
        ([("apple", 1)], [(1, "apple")], False),
        ([("apple",)], [], False),
        ([], [], True),
    ],
)
def test_bird_compares_sets(wanted: list[Row], found: list[Row], equal: bool) -> None:
    assert same(wanted, found, "bird", ordered=True) == equal


@pytest.mark.parametrize(
    ("query", "run"),
    [
        ("SELECT COUNT(DISTINCT name) FROM t", "SELECT COUNT( name) FROM t"),
        ("SELECT a FROM t WHERE b = 'distinct' AND c > = 3", "SELECT a FROM t WHERE b = 'distinct' AND c >= 3"),
        ("SELECT a FROM t WHERE b ! = 3 AND y < YEAR(CURDATE())", "SELECT a FROM t WHERE b != 3 AND y < 2020"),
    ],
)  # fmt: skip
def test_spiders_scorer_prepares_queries(query: str, run: str) -> None:
    assert prepared(query, "spider") == run
    assert prepared(query, "bird") == prepared(query, "rows") == query


@pytest.mark.parametrize(
    ("match", "wanted", "found", "equal"),
    [
        # taoyds/spider, issue 31: another count and another order of the same rows. The first scorer said no.
        (
            "spider",
            "SELECT T2.name, count(*) FROM concert AS T1 JOIN stadium AS T2 ON T1.stadium_id = T2.stadium_id "
            "GROUP BY T1.stadium_id",
            "SELECT T2.name, count(T2.stadium_id) FROM concert AS T1 JOIN stadium AS T2 "
            "ON T1.stadium_id = T2.stadium_id GROUP BY T2.name",
            True,
        ),
        # The same issue: two columns that are equal, and another one that differs. The first scorer said yes.
        (
            "spider",
            "SELECT name, MAX(stadium_id), COUNT(*), COUNT(*) FROM stadium",
            "SELECT name, AVG(stadium_id), COUNT(*), COUNT(*) FROM stadium",
            False,
        ),
        # Without `--keep_distinct`, which is the default, a missing DISTINCT is forgiven; BIRD forgives it as well.
        ("spider", "SELECT DISTINCT year FROM concert", "SELECT year FROM concert", True),
        ("bird", "SELECT DISTINCT year FROM concert", "SELECT year FROM concert", True),
        ("rows", "SELECT DISTINCT year FROM concert", "SELECT year FROM concert", False),
        # test-suite-sql-eval, issue 25: one of two equal years; `MAX` finds the one that is not wanted here.
        (
            "spider",
            "SELECT year FROM concert GROUP BY year ORDER BY count(*) DESC, year LIMIT 1",
            "SELECT MAX(year) FROM concert",
            False,
        ),
        ("spider", "SELECT name FROM stadium ORDER BY name", "SELECT name FROM stadium ORDER BY name DESC", False),
        ("bird", "SELECT name FROM stadium ORDER BY name", "SELECT name FROM stadium ORDER BY name DESC", True),
    ],
)  # fmt: skip
def test_published_cases(
    task: dict[str, Any], match: Match, wanted: str, found: str, equal: bool
) -> None:
    given = {**task, "query": wanted, "match": match, "ordered": "order by" in wanted.lower()}
    assert execution_match(given, found, None) == equal
