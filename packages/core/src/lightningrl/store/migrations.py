"""The scripts that lead a store of one schema version to the next.

`sql/DATABASE/migrations/NNNN_what.sql` leads from version NNNN - 1 to NNNN; the first makes version 1 in
an empty database. Invariant: all of them in order give the very tables that `schema.sql` gives, which a
test checks; a script that was released is never changed.
"""

from __future__ import annotations

import re

from lightningrl.errors import ConfigError
from lightningrl.store.queries import Database, folder
from lightningrl.store.versions import SCHEMA_VERSION, check_version

_FILE = re.compile(r"(\d{4})_\w+\.sql")


def migrations(database: Database) -> list[str]:
    """All scripts: the one at place `n` leads from version `n` to `n + 1`, 0 being an empty database."""
    files = sorted(
        (
            file
            for file in (folder(database) / "migrations").iterdir()
            if _FILE.fullmatch(file.name)
        ),
        key=lambda file: file.name,
    )
    numbers = [int(file.name[:4]) for file in files]
    if numbers != list(range(1, SCHEMA_VERSION + 1)):
        raise ValueError(f"the migrations of {database} are {numbers}, not 1 to {SCHEMA_VERSION}")
    return [file.read_text(encoding="utf-8") for file in files]


def scripts_from(database: Database, name: str, found: int | None) -> list[str]:
    """What leads the store `name` from version `found` to this one.

    Raises:
        ConfigError: it is no store (None), or newer than this LightningRL.
    """
    if found is None:
        raise ConfigError(f"{name!r} is not a LightningStore, so there is nothing to upgrade")
    if found > SCHEMA_VERSION:
        check_version(name, found)
    return migrations(database)[found:]
