"""The LightningStore in a PostgreSQL database: for several server processes, on several hosts.

Each process writes through one thread with group commit, reads through two, and listens on one
connection: four in all. What was acknowledged is as durable as the database makes a commit
(`synchronous_commit`). While the server can't be reached, calls wait for `patience_seconds`, then raise
`StoreUnavailable`; none is lost and none is written twice.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import psycopg

from lightningrl.machine.clock import Clock
from lightningrl.store import reading
from lightningrl.store.postgres import tables
from lightningrl.store.postgres.committer import PostgresCommitter
from lightningrl.store.postgres.link import Link
from lightningrl.store.postgres.listener import Listener
from lightningrl.store.postgres.reader import PostgresReader
from lightningrl.store.postgres.session import display_name, translated
from lightningrl.store.readers import Readers
from lightningrl.store.sql_store import GATHER_SECONDS, SqlStore
from lightningrl.store.waiting import Wakes
from lightningrl.store.writer import Writer

PATIENCE_SECONDS = 45.0
"""How long an outage of the database is waited out: more than a restart takes, and less than the minute
after which the HTTP client gives up on an answer."""

_LOOK_SECONDS = 5.0
"""How often who waits looks unasked: a notification may be lost with its connection."""


class PostgresStore(SqlStore):
    """Implements `Store`; made by `open`."""

    shared = True

    def __init__(
        self, connect: Callable[[], Link], listening: Link, secret: bytes, *, read_only: bool
    ) -> None:
        """For `open`, which see."""
        name, wakes = listening.name, Wakes()
        committer = PostgresCommitter(connect())
        self._listener = Listener(
            listening, None if read_only else committer.writer, wakes.wake_from_thread
        )
        super().__init__(
            name,
            writer=None if read_only else Writer(name, committer, wakes.wake),
            readers=Readers(name, lambda: PostgresReader(connect())),
            wakes=wakes,
            secret=secret,
            look_seconds=_LOOK_SECONDS,
            gather_seconds=GATHER_SECONDS,
        )

    @classmethod
    def open(
        cls,
        url: str,
        *,
        clock: Clock | None = None,
        read_only: bool = False,
        patience_seconds: float = PATIENCE_SECONDS,
    ) -> PostgresStore:
        """Open the store in the database at `url`; made where the database is empty.

        Args:
            url: As libpq takes it: `postgresql://USER@HOST:PORT/DATABASE`. The password may stand in
                it, in `PGPASSWORD`, or in a password file; `?options=-csearch_path%3DNAME` chooses a
                schema of the database.
            clock: By which leases and deadlines are judged; the database's own unless given, which
                hosts whose clocks differ agree on.
            read_only: Refuse every write.
            patience_seconds: See the module. Opening itself does not wait.

        Raises:
            ConfigError: `url` is none, the tables are of another version or program, or a connection
                pooler answers.
            StoreUnavailable: the server can't be reached, or lets nobody in.
        """
        name = display_name(url)
        listening = Link(url, name, 0.0, tables.use)
        try:
            if not read_only:
                _create_if_empty(url, name)
            secret = reading.secret(listening.session())
        except psycopg.Error as error:
            listening.close()
            raise translated(name, error) from error
        except BaseException:
            listening.close()
            raise

        def connect() -> Link:
            return Link(url, name, patience_seconds, tables.check, clock)

        return cls(connect, listening, secret, read_only=read_only)

    async def close(self) -> None:
        """Write what is under way, then let go of the database; closing again changes nothing."""
        await super().close()
        await asyncio.to_thread(self._listener.close)


def _create_if_empty(url: str, name: str) -> None:
    link = Link(url, name, 0.0, tables.create_if_empty)
    link.session()
    link.close()
