"""One connection to the SQLite file, and the statements that run on it by name.

Invariant: whatever SQLite reports leaves here as an error of ours, which names the file and the
remedy.
"""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Callable, Generator
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

import apsw

from lightningrl.errors import ConfigError, Conflict, LightningError, StoreUnavailable
from lightningrl.machine.clock import Clock
from lightningrl.store.queries import queries, schema
from lightningrl.store.rows import Row
from lightningrl.store.session import Session
from lightningrl.store.versions import SCHEMA_VERSION, check_version

T = TypeVar("T")

OLDEST_SQLITE = (3, 51, 3)
"""The first SQLite without the WAL-reset bug (https://sqlite.org/wal.html#walresetbug)."""

BUSY_MS = 10_000
"""How long another process that writes the file without `serve` is waited for."""

_REMEDIES: dict[type[apsw.Error], str] = {
    apsw.FullError: "the disk is full; free some space, then try again",
    apsw.IOError: "the disk reported an error; check space, quota and file system, then try again",
    apsw.CorruptError: "the file is damaged; restore a copy, or start again with another path",
    apsw.NotADBError: "this is no SQLite file; choose another path",
    apsw.CantOpenError: "it can't be opened; check that its folder exists and that you may read it",
    apsw.ReadOnlyError: "it can't be written; check the permissions of the file and its folder",
    apsw.BusyError: "another process holds it; stop what writes to it without `lightningrl serve`",
}


class SqliteSession(Session):
    """A connection to one file."""

    def __init__(self, path: Path, connection: apsw.Connection, clock: Clock) -> None:
        super().__init__()
        self.path = path
        self.connection = connection
        self._clock = clock
        self._queries = queries("sqlite")
        self.erasing = False
        """Whether this transaction overwrites the pages that it frees."""

    def rows(self, name: str, /, **values: Any) -> list[Row]:
        """See `Session.rows`."""
        return self.connection.execute(self._queries[name], values).fetchall()

    def row(self, name: str, /, **values: Any) -> Row | None:
        """See `Session.row`."""
        return self.connection.execute(self._queries[name], values).fetchone()

    def run(self, name: str, /, **values: Any) -> int:
        """See `Session.run`."""
        self.connection.execute(self._queries[name], values)
        return self.connection.changes()

    def insert(self, name: str, /, **values: Any) -> int | None:
        """See `Session.insert`."""
        self.connection.execute(self._queries[name], values)
        return self.connection.last_insert_rowid() if self.connection.changes() else None

    def selected(self, names: list[str], values: dict[str, Any]) -> list[Row]:
        """See `Session.selected`."""
        statement = "\n".join(self._queries[name] for name in names)
        return self.connection.execute(statement, values).fetchall()

    def now(self) -> datetime:
        """See `Session.now`."""
        return self._clock.now()

    def erase(self) -> None:
        """See `Session.erase`."""
        self.connection.pragma("secure_delete", True)
        self.erasing = True

    def read(self, operation: Callable[[Session], T]) -> T:
        """See `ReadSession.read`."""
        with translating(self.path), self.transaction():
            return operation(self)

    def close(self) -> None:
        """Close the connection."""
        self.connection.close()

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


def open_session(
    path: Path, clock: Clock, *, read_only: bool, synchronous: str = "NORMAL"
) -> SqliteSession:
    """Open the file; the writer makes the tables where there are none.

    Raises:
        ConfigError: the file belongs to another version of the store, or to another program.
        StoreUnavailable: it can't be opened, or is damaged.
    """
    session = open_file(path, clock, read_only=read_only)
    with translating(path):
        try:
            if not read_only:
                _configure(session.connection, synchronous)
                _create_if_empty(session)
            _check_version(session)
        except BaseException:
            session.close()
            raise
    return session


def open_file(path: Path, clock: Clock, *, read_only: bool) -> SqliteSession:
    """Open the file as it is, of whatever version.

    Raises:
        StoreUnavailable: it can't be opened.
    """
    _check_sqlite()
    flags = apsw.SQLITE_OPEN_READONLY
    if not read_only:
        flags = apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_CREATE
    with translating(path):
        connection = apsw.Connection(str(path), flags=flags, statementcachesize=200)
        connection.set_busy_timeout(BUSY_MS)
        # Else SQLite compiles a statement anew whenever a parameter changes that it compared with
        # the condition of a partial index: 50 of the 60 microseconds that looking up an attempt took.
        connection.config(apsw.SQLITE_DBCONFIG_ENABLE_QPSG, 1)
    return SqliteSession(path, connection, clock)


def version(session: SqliteSession) -> int | None:
    """The schema version. None: it is no store."""
    if session.row("is_ours") is None:
        return None
    row = session.row("meta", name="schema_version")
    return None if row is None else row[0]


def _check_sqlite() -> None:
    version = tuple(int(part) for part in apsw.sqlite_lib_version().split("."))
    if version < OLDEST_SQLITE:
        oldest = ".".join(str(part) for part in OLDEST_SQLITE)
        raise ConfigError(
            f"apsw brings SQLite {apsw.sqlite_lib_version()}, which can damage a store; "
            f"install apsw >= {oldest}"
        )


_PAGE_BYTES = 1024
"""Of a new file. A call takes two to six kilobytes: in pages of 4 KiB a third of the file would be empty."""


def _configure(connection: apsw.Connection, synchronous: str) -> None:
    connection.pragma("page_size", _PAGE_BYTES)
    connection.pragma("journal_mode", "wal")
    connection.pragma("synchronous", synchronous)
    connection.pragma("foreign_keys", True)
    # Small: SQLite looks through all slots of this cache at each commit that made the file longer. With 32 MiB,
    # that is two thirds of the work of enqueueing one rollout into a store of 60,000.
    connection.pragma("cache_size", -2048)  # KiB
    # What is changed or deleted within a page is overwritten; whole pages are where `erase` says so.
    connection.pragma("secure_delete", "fast")
    # The writer thread checkpoints when it has nothing else to do.
    connection.wal_autocheckpoint(0)


def _create_if_empty(session: SqliteSession) -> None:
    with session.transaction("BEGIN IMMEDIATE"):
        if session.connection.pragma("schema_version") != 0:
            return
        session.connection.execute(schema("sqlite"))
        session.run("put_meta", name="schema_version", value=SCHEMA_VERSION)
        session.run("put_meta", name="secret", value=secrets.token_bytes(32))


def _check_version(session: SqliteSession) -> None:
    found = version(session)
    if found is None:
        raise ConfigError(
            f"{str(session.path)!r} is an SQLite file but not a LightningStore; choose another path"
        )
    check_version(str(session.path), found)
