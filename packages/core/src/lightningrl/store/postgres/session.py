"""One connection to PostgreSQL, and the statements that run on it by name.

Invariants: whatever PostgreSQL reports leaves `translated` as an error of ours that names the store and
the remedy; the clock is the database's, read once at the beginning of each transaction, so that every
host judges leases alike.
"""

from __future__ import annotations

import re
from datetime import datetime
from typing import Any

import psycopg
from psycopg import errors
from psycopg.conninfo import conninfo_to_dict
from psycopg.types.numeric import Int8BinaryDumper
from psycopg.types.string import StrBinaryDumper

from lightningrl.errors import ConfigError, Conflict, LightningError, StoreUnavailable
from lightningrl.machine.clock import Clock
from lightningrl.store.queries import queries
from lightningrl.store.rows import Row, instant, micros
from lightningrl.store.session import Session

BEGIN = "BEGIN"
BEGIN_READING = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"

_CLOCK = "SELECT CAST(extract(epoch FROM clock_timestamp()) * 1000000 AS bigint)"
_PARAMETER = re.compile(r"(?<!:):(\w+)")

_LOCK_SECONDS = 20
"""How long a statement waits for another transaction's lock before the transaction is tried again."""

_IDLE_SECONDS = 30
"""After this time PostgreSQL ends a transaction whose process fell silent, which frees its locks."""

_OPTIONS: dict[str, Any] = {
    "autocommit": True,
    "application_name": "lightningrl",
    "connect_timeout": 5,
    # A host that vanished is noticed after 20 seconds.
    "keepalives": 1,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 2,
    "tcp_user_timeout": 20_000,
}

_REMEDIES: dict[type[psycopg.Error], str] = {
    errors.DiskFull: "the database's disk is full; free some space, then try again",
    errors.InsufficientPrivilege: "the role may not do this; make it the owner of the tables",
    errors.LockNotAvailable: "other transactions held it up; look at pg_stat_activity",
    errors.DeadlockDetected: "other transactions held it up; try again",
    errors.QueryCanceled: "somebody cancelled it, or statement_timeout is too short; try again",
    errors.UndefinedTable: "a table is missing; run `lightningrl db check` on it",
}


class PostgresSession(Session):
    """A connection to one store."""

    def __init__(
        self, name: str, connection: psycopg.Connection[Row], clock: Clock | None = None
    ) -> None:
        """`clock` stands in for the database's."""
        super().__init__()
        self.name = name
        self._clock = clock
        self.connection = connection
        self._cursor = connection.cursor(binary=True)
        self._plain = connection.cursor()
        self._queries = _statements()
        self._now_us = 0

    def rows(self, name: str, /, **values: Any) -> list[Row]:
        """See `Session.rows`."""
        return self._cursor.execute(self._queries[name], values).fetchall()

    def row(self, name: str, /, **values: Any) -> Row | None:
        """See `Session.row`."""
        return self._cursor.execute(self._queries[name], values).fetchone()

    def run(self, name: str, /, **values: Any) -> int:
        """See `Session.run`."""
        return self._cursor.execute(self._queries[name], values).rowcount

    def insert(self, name: str, /, **values: Any) -> int | None:
        """See `Session.insert`; the statement returns the key."""
        row = self._cursor.execute(self._queries[name], values).fetchone()
        return None if row is None else row[0]

    def selected(self, names: list[str], values: dict[str, Any]) -> list[Row]:
        """See `Session.selected`."""
        statement = b"\n".join(self._queries[name] for name in names)
        return self._cursor.execute(statement, values).fetchall()

    def now(self) -> datetime:
        """See `Session.now`: the database's clock when the transaction began."""
        return instant(self._now_us)

    def now_us(self) -> int:
        """See `Session.now_us`."""
        return self._now_us

    def begin(self, *statements: str) -> None:
        """Begin a transaction by `statements` and read the clock, all in one round trip."""
        self.control("; ".join((*statements, _CLOCK)))
        while self._plain.nextset():
            pass
        clock_us = self.answer()
        self._now_us = clock_us if self._clock is None else micros(self._clock.now())

    def answer(self) -> Any:
        """The one value that the last `control` selected."""
        row = self._plain.fetchone()
        assert row is not None, "a SELECT without FROM returns one row"
        return row[0]

    def control(self, statement: str) -> None:
        """Run statements without arguments, in one round trip: savepoints, COMMIT, scripts."""
        self._plain.execute(statement.encode(), prepare=False)


def _statements() -> dict[str, bytes]:
    return {
        name: _PARAMETER.sub(r"%(\1)s", statement.replace("%", "%%")).encode()
        for name, statement in queries("postgres").items()
    }


def display_name(url: str) -> str:
    """`url` without its password, for messages.

    Raises:
        ConfigError: it is no URL of a PostgreSQL database.
    """
    try:
        parts = conninfo_to_dict(url)
    except psycopg.ProgrammingError as error:
        # libpq quotes the URL, password included.
        raise ConfigError(
            "the store's URL is no PostgreSQL URL; write postgresql://USER@HOST:PORT/DATABASE"
        ) from error
    user = f"{parts['user']}@" if "user" in parts else ""
    port = f":{parts['port']}" if "port" in parts else ""
    return f"postgresql://{user}{parts.get('host', '')}{port}/{parts.get('dbname', '')}"


def connect(url: str, name: str) -> psycopg.Connection[Row]:
    """A connection in autocommit mode.

    Raises:
        ConfigError: a connection pooler stands between; see `_refuse_pooler`.
        psycopg.OperationalError: there is no connection.
    """
    given = conninfo_to_dict(url)
    options = {key: value for key, value in _OPTIONS.items() if key not in given}
    connection: psycopg.Connection[Row] = psycopg.connect(url, **options)
    try:
        connection.adapters.register_dumper(int, Int8BinaryDumper)
        connection.adapters.register_dumper(str, StrBinaryDumper)
        connection.prepare_threshold = 0
        connection.prepared_max = 1000
        _refuse_pooler(connection, name)
        connection.execute(f"SET lock_timeout = '{_LOCK_SECONDS}s'".encode())
        idle = f"SET idle_in_transaction_session_timeout = '{_IDLE_SECONDS}s'"
        connection.execute(idle.encode())
    except BaseException:
        connection.close()
        raise
    return connection


def _refuse_pooler(connection: psycopg.Connection[Row], name: str) -> None:
    """Refuse a pooler such as PgBouncer: notifications and session locks need a connection of ours.

    A pooler answers the start of a connection itself, with a process number that it made up.
    """
    row = connection.execute("SELECT pg_backend_pid()", prepare=False).fetchone()
    if row is None or row[0] != connection.info.backend_pid:
        raise ConfigError(
            f"a connection pooler such as PgBouncer answers at {name!r}; LightningRL pools its "
            "connections itself and needs LISTEN, which transaction pooling breaks: "
            "give the URL of the PostgreSQL server"
        )


def is_lost(connection: psycopg.Connection[Row], error: psycopg.Error) -> bool:
    """Whether `error` says that the server or the connection to it is gone, not that we erred."""
    if connection.closed:
        return True
    gone = (
        errors.AdminShutdown,
        errors.CrashShutdown,
        errors.CannotConnectNow,
        errors.IdleInTransactionSessionTimeout,
    )
    return isinstance(error, gone)


def translated(name: str, error: psycopg.Error) -> LightningError:
    """What PostgreSQL's `error` means for a user of the store `name`."""
    if isinstance(error, psycopg.IntegrityError):
        return Conflict(f"the store refused this: {error.diag.message_primary or error}")
    if isinstance(error, psycopg.DataError):
        return ConfigError(
            f"PostgreSQL can't keep or look for this: {error.diag.message_primary or error}"
        )
    remedy = next((text for cls, text in _REMEDIES.items() if isinstance(error, cls)), None)
    if remedy is None:
        remedy = "this is unexpected; please report it"
    what = error.diag.message_primary or str(error).strip()
    return StoreUnavailable(f"the store {name!r} failed: {what} ({remedy})")
