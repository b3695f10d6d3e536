"""Stores that are databases: opened by the process that serves them, upgraded and checked by an operator.

Each of apsw and psycopg is loaded only by those who use it.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from lightningrl.errors import ConfigError
from lightningrl.store.sql_store import SqlStore
from lightningrl.store.urls import Kind, kind_of, path_of


def open_database(
    url: str | Path,
    *,
    read_only: bool = False,
    synchronous: Literal["NORMAL", "FULL"] = "NORMAL",
) -> SqlStore:
    """Open the store in the database at `url`, as its writer unless `read_only`.

    Args:
        url: A path, or `postgresql://...`.
        read_only: Refuse every write.
        synchronous: Of an SQLite file; see `SqliteStore.open`.

    Raises:
        ConfigError: `url` names no database, or one that is no store of this version, or `synchronous`
            is asked of PostgreSQL.
        StoreLocked: another process writes the file.
        StoreUnavailable: it can't be reached or opened.
    """
    if _is_postgres(url):
        from lightningrl.store.postgres import PostgresStore

        if synchronous == "FULL":
            raise ConfigError(
                "PostgreSQL itself says how durable a commit is, by `synchronous_commit`, which is on "
                "by default; leave `synchronous` out"
            )
        return PostgresStore.open(str(url), read_only=read_only)
    from lightningrl.store.sqlite import SqliteStore

    return SqliteStore.open(path_of(url), read_only=read_only, synchronous=synchronous)


def upgrade_database(url: str | Path) -> int:
    """Lead the store at `url` to this version of its tables; return the version that it had.

    Raises:
        ConfigError: `url` names no database, or one that is no store or newer than this LightningRL.
        StoreLocked: a process uses it.
        StoreUnavailable: it can't be reached or written.
    """
    if _is_postgres(url):
        from lightningrl.store.postgres.upgrade import upgrade

        return upgrade(str(url))
    from lightningrl.store.sqlite.upgrade import upgrade as upgrade_file

    return upgrade_file(path_of(url))


def check_database(url: str | Path) -> list[str]:
    """What is not in order in the store at `url`, a sentence each; [] is a sound store.

    Raises:
        ConfigError: `url` names no database, or one that is no store of this version.
        StoreUnavailable: it can't be reached or read.
    """
    if _is_postgres(url):
        from lightningrl.store.postgres.check import check

        return check(str(url))
    from lightningrl.store.sqlite.check import check as check_file

    return check_file(path_of(url))


def shrink_database(url: str | Path) -> tuple[int, int]:
    """Give what deletion freed in the store's file back to the system; return its bytes before and after.

    Raises:
        ConfigError: `url` names no file, or one that is no store of this version.
        StoreLocked: a process uses it.
        StoreUnavailable: it can't be read or written.
    """
    if _is_postgres(url):
        raise ConfigError(
            "PostgreSQL uses freed space again by itself (autovacuum); to give it back to the system,"
            " run VACUUM FULL in the database while no server uses it"
        )
    from lightningrl.store.sqlite.shrink import shrink

    return shrink(path_of(url))


def shown(url: str | Path) -> str:
    """`url` for people: without a password."""
    if _is_postgres(url):
        from lightningrl.store.postgres.session import display_name

        return display_name(str(url))
    return str(url)


def _is_postgres(url: str | Path) -> bool:
    kind = kind_of(url)
    if kind is Kind.HTTP:
        raise ConfigError(
            f"{str(url)!r} is a server's URL; do this with the path or URL of its database"
        )
    if kind is Kind.POSTGRES and find_spec("psycopg") is None:
        raise ConfigError(
            "PostgreSQL needs a driver that is not installed: pip install 'lightningrl[postgres]'"
        )
    return kind is Kind.POSTGRES
