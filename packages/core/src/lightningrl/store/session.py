"""One connection to the SQLite file, and the statements that run on it by name.

Invariant: whatever SQLite reports leaves here as an error of ours, which names the file and the
remedy.
"""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Generator
from enum import StrEnum
from pathlib import Path
from typing import Any

import apsw
import msgspec

from lightningrl.errors import ConfigError, Conflict, LightningError, StoreUnavailable
from lightningrl.store.compression import Compressor
from lightningrl.store.deltas import Bases
from lightningrl.store.queries import queries, schema
from lightningrl.store.rows import Row

SCHEMA_VERSION = 1
"""Version of `schema.sql`; +1 whenever a store made by the former version can't be read."""

OLDEST_SQLITE = (3, 51, 3)
"""The first SQLite without the WAL-reset bug (https://sqlite.org/wal.html#walresetbug)."""

_encoder = msgspec.msgpack.Encoder()

_REMEDIES: dict[type[apsw.Error], str] = {
    apsw.FullError: "the disk is full; free some space, then try again",
    apsw.IOError: "the disk reported an error; check space, quota and file system, then try again",
    apsw.CorruptError: "the file is damaged; restore a copy, or start again with another path",
    apsw.NotADBError: "this is no SQLite file; choose another path",
    apsw.CantOpenError: "it can't be opened; check that its folder exists and that you may read it",
    apsw.ReadOnlyError: "it can't be written; check the permissions of the file and its folder",
    apsw.BusyError: "another process holds it; stop what writes to it without `lightningrl serve`",
}


class Wake(StrEnum):
    """What a transaction changed that somebody may wait for."""

    QUEUED = "queued"
    """A rollout can be claimed."""
    ENDED = "ended"
    """A rollout ended."""


class Session:
    """A connection, used by one thread at a time."""

    def __init__(self, path: Path, connection: apsw.Connection) -> None:
        self.path = path
        self.connection = connection
        self._compressor = Compressor()
        self.bases = Bases()
        self.wakes: set[Wake] = set()
        """Filled by operations, emptied by the writer after the commit."""
        self._queries = queries()

    def rows(self, name: str, /, **values: Any) -> list[Row]:
        """All rows of the statement `name`."""
        return self.connection.execute(self._queries[name], values).fetchall()

    def row(self, name: str, /, **values: Any) -> Row | None:
        """The first row of the statement `name`, or None."""
        return self.connection.execute(self._queries[name], values).fetchone()

    def run(self, name: str, /, **values: Any) -> int:
        """Run the statement `name`; return how many rows it changed."""
        self.connection.execute(self._queries[name], values)
        return self.connection.changes()

    def packed(self, value: Any) -> bytes:
        """A record or a JSON-like value as a blob."""
        return self._compressor.pack(_encoder.encode(value))

    def selected(self, names: list[str], values: dict[str, Any]) -> list[Row]:
        """All rows of the statement that the fragments `names` make together."""
        statement = "\n".join(self._queries[name] for name in names)
        return self.connection.execute(statement, values).fetchall()

    @contextlib.contextmanager
    def transaction(self, begin: str = "BEGIN") -> Generator[None]:
        """One transaction: committed when the body returns, rolled back when it raises."""
        self.connection.execute(begin)
        try:
            yield
            self.connection.execute("COMMIT")
        except BaseException:
            # SQLite has rolled back by itself after a full disk or an I/O error.
            if self.connection.in_transaction:
                self.connection.execute("ROLLBACK")
            raise


def translated(path: Path, error: apsw.Error) -> LightningError:
    """What SQLite's `error` means for a user of the store at `path`."""
    if isinstance(error, apsw.ConstraintError):
        return Conflict(f"the store refused this: {error}")
    remedy = next((text for cls, text in _REMEDIES.items() if isinstance(error, cls)), None)
    if remedy is None:
        remedy = "this is unexpected; please report it"
    return StoreUnavailable(f"the store {str(path)!r} failed: {error} ({remedy})")


@contextlib.contextmanager
def translating(path: Path) -> Generator[None]:
    """Raise our errors for SQLite's."""
    try:
        yield
    except apsw.Error as error:
        raise translated(path, error) from error


def open_session(path: Path, *, read_only: bool, synchronous: str = "NORMAL") -> Session:
    """Open the file; the writer makes the tables where there are none.

    Raises:
        ConfigError: the file belongs to another version of the store, or to another program.
        StoreUnavailable: it can't be opened, or is damaged.
    """
    _check_sqlite()
    flags = apsw.SQLITE_OPEN_READONLY
    if not read_only:
        flags = apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_CREATE
    with translating(path):
        connection = apsw.Connection(str(path), flags=flags, statementcachesize=200)
        connection.set_busy_timeout(10_000)
        session = Session(path, connection)
        try:
            if not read_only:
                _configure(connection, synchronous)
                _create_if_empty(session)
            _check_version(session)
        except BaseException:
            connection.close()
            raise
    return session


def _check_sqlite() -> None:
    version = tuple(int(part) for part in apsw.sqlite_lib_version().split("."))
    if version < OLDEST_SQLITE:
        oldest = ".".join(str(part) for part in OLDEST_SQLITE)
        raise ConfigError(
            f"apsw brings SQLite {apsw.sqlite_lib_version()}, which can damage a store; "
            f"install apsw >= {oldest}"
        )


def _configure(connection: apsw.Connection, synchronous: str) -> None:
    connection.pragma("journal_mode", "wal")
    connection.pragma("synchronous", synchronous)
    connection.pragma("foreign_keys", True)
    connection.pragma("cache_size", -32768)  # KiB
    # The writer thread checkpoints when it has nothing else to do.
    connection.wal_autocheckpoint(0)


def _create_if_empty(session: Session) -> None:
    with session.transaction("BEGIN IMMEDIATE"):
        if session.connection.pragma("schema_version") != 0:
            return
        session.connection.execute(schema())
        session.run("put_meta", name="schema_version", value=SCHEMA_VERSION)
        session.run("put_meta", name="secret", value=secrets.token_bytes(32))


def _check_version(session: Session) -> None:
    row = None
    if session.row("is_ours") is not None:
        row = session.row("meta", name="schema_version")
    if row is None:
        raise ConfigError(
            f"{str(session.path)!r} is an SQLite file but not a LightningStore; choose another path"
        )
    if row[0] != SCHEMA_VERSION:
        raise ConfigError(
            f"the store {str(session.path)!r} has schema version {row[0]}, this LightningRL reads "
            f"version {SCHEMA_VERSION}; use the LightningRL that made it, or another path"
        )
