"""The LightningStore in one SQLite file: the embedded default.

One process writes, through one thread, and holds a lock that says so; any number of processes read.
With `synchronous="NORMAL"` what was acknowledged survives `kill -9` of any process, and with `"FULL"`
also a power cut, at the price of one sync to disk per commit. What an iteration took survives one either
way, so that no checkpoint knows of data that the store has lost.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from lightningrl.machine.clock import Clock, SystemClock
from lightningrl.machine.durable import sync
from lightningrl.schema import GroupId, TakenGroup
from lightningrl.store import reading
from lightningrl.store.readers import Readers
from lightningrl.store.sql_store import GATHER_SECONDS, SqlStore
from lightningrl.store.sqlite.committer import SqliteCommitter
from lightningrl.store.sqlite.lock import WriterLock
from lightningrl.store.sqlite.session import SqliteSession, open_session
from lightningrl.store.waiting import Wakes
from lightningrl.store.writer import Writer

_LOOK_SECONDS = 0.25
"""How often a read-only store looks for progress: nobody in this process can wake it."""


class SqliteStore(SqlStore):
    """Implements `Store`; made by `open`."""

    def __init__(
        self,
        path: Path,
        clock: Clock,
        secret: bytes,
        lock: WriterLock | None,
        session: SqliteSession | None,
        gather_seconds: float,
    ) -> None:
        """For `open`, which see."""
        self.path = path
        self._lock = lock
        name, wakes = str(path), Wakes()
        writer = None
        if session is not None:
            writer = Writer(name, SqliteCommitter(session), wakes.wake)
        super().__init__(
            name,
            writer=writer,
            readers=Readers(name, lambda: open_session(path, clock, read_only=True)),
            wakes=wakes,
            secret=secret,
            look_seconds=_LOOK_SECONDS if session is None else None,
            gather_seconds=gather_seconds,
        )

    @classmethod
    def open(
        cls,
        path: str | Path,
        *,
        clock: Clock | None = None,
        read_only: bool = False,
        synchronous: Literal["NORMAL", "FULL"] = "NORMAL",
        gather_seconds: float = GATHER_SECONDS,
    ) -> SqliteStore:
        """Open the store at `path`; a writer makes it where there is none.

        Args:
            path: The file. Its `-wal`, `-shm` and `.lock` stand beside it.
            clock: By which leases and deadlines are judged; the machine's own unless given.
            read_only: Take no lock and refuse every write. Works while another process writes.
            synchronous: SQLite's setting of that name; see the module.
            gather_seconds: How late `progress` may tell that some rollouts, and not all, have ended.

        Raises:
            StoreLocked: another process writes it; the message names its URL.
            ConfigError: the file is no store, or one of another schema version.
            StoreUnavailable: it can't be opened, or is damaged.
        """
        path = Path(path).absolute()
        clock = clock or SystemClock()
        lock = None if read_only else WriterLock(path)
        try:
            session = open_session(path, clock, read_only=read_only, synchronous=synchronous)
            secret = reading.secret(session)
        except BaseException:
            if lock is not None:
                lock.release()
            raise
        if read_only:
            session.close()
        writing = None if read_only else session
        return cls(path, clock, secret, lock, writing, gather_seconds)

    def announce(self, url: str) -> None:
        """Note for others who would write that this process serves the store at `url`."""
        if self._lock is not None:
            self._lock.announce(url)

    async def take(
        self,
        run: str,
        iteration: int,
        *,
        min_group: int = 2,
        skip: Sequence[GroupId] = (),
        failure_reward: float | None = None,
    ) -> list[TakenGroup]:
        """See `Store.take`. When it returns, its commit and those before it are on disk."""
        taken = await super().take(
            run, iteration, min_group=min_group, skip=skip, failure_reward=failure_reward
        )
        await asyncio.to_thread(sync, self.path.with_name(self.path.name + "-wal"))
        return taken

    async def close(self) -> None:
        """Write what is under way, then let go of the file; closing again changes nothing."""
        await super().close()
        if self._lock is not None:
            self._lock.release()
            self._lock = None
