"""The named SQL statements that stand in `store/sql/*.sql`.

A statement begins with a line `-- name: NAME` and reaches to the next such line; other comments stay
with the statement that they precede. Files in `sql/` serve every database; a statement that must
differ stands once in the folder of each database instead. So a name stands once over all files that
serve one database. Where PostgreSQL needs only a word more, mostly the lock that its concurrent
writers need and SQLite's single one does not, that word stands in the statement as
`/* postgres: ... */`, which is a comment to SQLite.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from importlib import resources
from importlib.resources.abc import Traversable
from typing import Literal

Database = Literal["sqlite", "postgres"]

_POSTGRES = re.compile(r"/\* postgres: (.*?) \*/")
_NAME = re.compile(r"^-- name: (\w+)\n", re.MULTILINE)


def schema(database: Database) -> str:
    """The script that makes an empty store."""
    return (folder(database) / "schema.sql").read_text(encoding="utf-8")


@functools.cache
def queries(database: Database) -> dict[str, str]:
    """Name -> statement."""
    found: dict[str, str] = {}
    for file in _files(database):
        parts = _NAME.split(file.read_text(encoding="utf-8"))
        for name, statement in zip(parts[1::2], parts[2::2], strict=True):
            if name in found:
                raise ValueError(f"the query {name!r} stands twice, again in {file.name}")
            if database == "postgres":
                statement = _POSTGRES.sub(r"\1", statement)
            found[name] = statement.strip()
    return found


def _files(database: Database) -> Iterator[Traversable]:
    for place in (_folder(), folder(database)):
        for file in sorted(place.iterdir(), key=lambda file: file.name):
            if file.name.endswith(".sql") and file.name != "schema.sql":
                yield file


def folder(database: Database) -> Traversable:
    """Where the files of one database stand."""
    return _folder() / database


def _folder() -> Traversable:
    return resources.files("lightningrl.store").joinpath("sql")
