"""Queries that a model may write read a file, within limits, and do nothing else."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from lightningrl_bench_sql.database import (
    MAX_ROWS,
    SHOWN_CHARACTERS,
    QueryError,
    cut,
    rows_of,
    run,
    schema_of,
    show,
)

ENDLESS = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT {} FROM n"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "shop #1.sqlite"
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(
            'CREATE TABLE book (book_id INTEGER PRIMARY KEY, name TEXT, "list price" INTEGER);'
            "INSERT INTO book VALUES (1, 'ada', 12), (2, 'bo', 30), (3, NULL, 7), (4, 'dee', 9);"
        )
    return path


def test_a_query_gives_rows(file: Path) -> None:
    assert run(file, "SELECT name FROM book WHERE book_id < 3") == [("ada",), ("bo",)]
    assert run(file, "SELECT COUNT(*) FROM book; ") == [(4,)]
    assert run(file, "WITH b AS (SELECT 1 AS one) SELECT one FROM b") == [(1,)]


@pytest.mark.parametrize(
    "query",
    [
        "",
        "-- nothing",
        "I would look at the table book.",
        "SELECT title FROM book",
        "SELECT AVG() FROM book",
        "SELECT 1; SELECT 2",
        "SELECT '\x00'",
        "SELECT '\ud800'",
        "DELETE FROM book",
        "UPDATE book SET name = 'x'",
        "DROP TABLE book",
        "CREATE TEMP TABLE t (a)",
        "PRAGMA user_version = 3",
        "PRAGMA table_info(book)",
        "VACUUM INTO 'copy.sqlite'",
        "BEGIN",
        "SELECT load_extension('x')",
        "SELECT LENGTH(zeroblob(2000000))",
        "SELECT replace(hex(zeroblob(400000)), '0', '0000')",
    ],
)
def test_everything_but_one_reading_query_is_an_error(
    file: Path, query: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    before = file.read_bytes()
    with pytest.raises(QueryError, match=r"\w"):
        run(file, query)
    assert rows_of(file, query) is None
    assert file.read_bytes() == before
    assert list(tmp_path.iterdir()) == [file]


def test_no_other_file_is_attached(file: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.sqlite"
    with pytest.raises(QueryError, match="not authorized"):
        run(file, f"ATTACH '{other}' AS other")
    assert not other.exists()


def test_a_query_that_does_not_end_is_ended(file: Path) -> None:
    with pytest.raises(QueryError, match="the query took too long"):
        run(file, ENDLESS.format("COUNT(*)"), max_seconds=0.05)


def test_a_result_beyond_the_limit_is_an_error(file: Path) -> None:
    assert len(run(file, f"{ENDLESS.format('i')} LIMIT {MAX_ROWS}")) == MAX_ROWS
    with pytest.raises(QueryError, match=f"more than {MAX_ROWS} rows"):
        run(file, ENDLESS.format("i"))


def test_text_that_is_no_utf_8_is_read(file: Path) -> None:
    assert run(file, "SELECT CAST(x'61ff62' AS TEXT)") == [("ab",)]


def test_a_file_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="there is no database"):
        run(tmp_path / "none.sqlite", "SELECT 1")
    assert not list(tmp_path.iterdir())


def test_a_result_is_shown_by_its_first_rows() -> None:
    assert show([]) == "no rows"
    assert show([(7,)]) == "1 row: 7"
    assert show([("a", 1), (None, 2.5)]) == "2 rows: a | 1; NULL | 2.5"
    assert show([(n,) for n in range(5)]) == "5 rows: 0; 1; 2; ..."
    assert len(show([("x" * 999,)])) == len(cut("y" * 999)) == SHOWN_CHARACTERS + len("...")


def test_a_schema_is_a_line_for_each_table(file: Path) -> None:
    assert schema_of(file) == 'book (book_id, name, "list price")'
