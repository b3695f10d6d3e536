"""SQLite files as an agent may use them: read-only, within a limit of time, rows and size.

Invariant: whatever text `run` is given, it changes no file and returns within its limits. A query that can't be
answered so is a `QueryError`, whose text is what the model reads.
"""

from __future__ import annotations

import re
import sqlite3
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

Row = tuple[object, ...]

MAX_SECONDS = 5.0
"""Longest time for one query; those of the generated tasks take milliseconds."""
MAX_ROWS = 10_000
"""Most rows of a result."""
MAX_BYTES = 1_000_000
"""Largest text or blob that a query may make."""

SHOWN_ROWS = 3
"""Rows of a result that an agent is shown."""
SHOWN_CHARACTERS = 200
"""Longest text of a result, or of an error, that an agent is shown."""

_READING = frozenset(
    {sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION, sqlite3.SQLITE_RECURSIVE}
)
_INSTRUCTIONS = 1_000
"""Of SQLite's machine, between two looks at the clock."""
_PLAIN_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


class QueryError(ValueError):
    """A query can't be read, is not allowed, or breaks a limit."""


def run(path: str | Path, query: str, *, max_seconds: float = MAX_SECONDS) -> list[Row]:
    """Return the rows of one query on the file at `path`.

    Raises:
        QueryError: `query` is no single query that only reads, or is beyond a limit.
        FileNotFoundError: there is no such file.
    """
    deadline = time.monotonic() + max_seconds
    with closing(_open(path)) as connection:
        connection.set_authorizer(_only_reading)
        connection.set_progress_handler(lambda: time.monotonic() > deadline, _INSTRUCTIONS)
        try:
            cursor = connection.execute(query)
            rows: list[Row] = cursor.fetchmany(MAX_ROWS + 1)
        # ValueError: a null character, or half a character.
        except (sqlite3.Error, sqlite3.Warning, ValueError, MemoryError) as error:
            late = time.monotonic() > deadline
            raise QueryError("the query took too long" if late else str(error)) from error
    if cursor.description is None:
        raise QueryError("there is no query")
    if len(rows) > MAX_ROWS:
        raise QueryError(f"the result has more than {MAX_ROWS} rows")
    return rows


def rows_of(path: str | Path, query: str) -> list[Row] | None:
    """Return what `run` does, or `None` where it raises a `QueryError`."""
    try:
        return run(path, query)
    except QueryError:
        return None


def show(rows: Sequence[Row]) -> str:
    """Return the text of a result that an agent is shown: how many rows, and the first of them."""
    if not rows:
        return "no rows"
    lines = [
        " | ".join("NULL" if cell is None else str(cell) for cell in row)
        for row in rows[:SHOWN_ROWS]
    ]
    rest = "; ..." if len(rows) > SHOWN_ROWS else ""
    return cut(f"{len(rows)} {'row' if len(rows) == 1 else 'rows'}: {'; '.join(lines)}{rest}")


def cut(text: str) -> str:
    """Return `text` as short as an agent is shown it."""
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}..."


def schema_of(path: str | Path) -> str:
    """Return the tables of a file, one a line: `book (book_id, name, pages)`.

    Raises:
        FileNotFoundError: there is no such file.
    """
    with closing(_open(path)) as connection:
        tables = connection.execute(
            "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%' ORDER BY rowid"
        ).fetchall()
        lines: list[str] = []
        for (table,) in tables:
            columns = connection.execute("SELECT name FROM pragma_table_info(?)", (table,))
            lines.append(f"{_quoted(table)} ({', '.join(_quoted(name) for (name,) in columns)})")
    return "\n".join(lines)


def _open(path: str | Path) -> sqlite3.Connection:
    """Open a file for reading; an attempt to open one that is not there would say little."""
    file = Path(path).absolute()
    if not file.is_file():
        raise FileNotFoundError(f"there is no database {str(path)!r}")
    connection = sqlite3.connect(f"{file.as_uri()}?mode=ro", uri=True)
    connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, MAX_BYTES)
    # Published databases hold texts that are no UTF-8.
    connection.text_factory = lambda text: text.decode("utf-8", "ignore")
    return connection


def _only_reading(action: int, *_: object) -> int:
    return sqlite3.SQLITE_OK if action in _READING else sqlite3.SQLITE_DENY


def _quoted(name: str) -> str:
    return name if _PLAIN_NAME.fullmatch(name) else f'"{name}"'
