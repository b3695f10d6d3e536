"""The LightningStore in one SQLite file: the embedded default.

One process writes, through one thread, and holds a lock that says so; any number of processes read.
With `synchronous="NORMAL"` what was acknowledged survives `kill -9` of any process, and with `"FULL"`
also a power cut, at the price of one sync to disk per commit.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, TypeVar

from lightningrl.clock import Clock, SystemClock
from lightningrl.errors import StoreUnavailable
from lightningrl.schema import (
    Attempt,
    AttemptId,
    AttemptState,
    Claim,
    Event,
    Failure,
    GroupId,
    Mode,
    NewRollout,
    Policy,
    Progress,
    Rollout,
    RolloutId,
    TakenGroup,
    Worker,
)
from lightningrl.store import event_log, ledger, lifecycle, policies, reading
from lightningrl.store.base import Ended, LedgerEntry, RolloutQuery, RunSummary
from lightningrl.store.lock import WriterLock
from lightningrl.store.readers import Readers
from lightningrl.store.rows import micros, seconds_to_us
from lightningrl.store.session import Session, Wake, open_session
from lightningrl.store.waiting import Patience, Wakes
from lightningrl.store.writer import Writer

T = TypeVar("T")

_LOOK_SECONDS = 0.25
"""How often a read-only store looks for progress: nobody in this process can wake it."""

GATHER_SECONDS = 0.1
"""How long `progress` gathers further ends before it tells of the first: without it, rollouts that end
one after the other would cost a round trip each."""


class SqliteStore:
    """Implements `Store`; made by `open`."""

    def __init__(
        self,
        path: Path,
        clock: Clock,
        secret: bytes,
        lock: WriterLock | None,
        writer: Session | None,
        gather_seconds: float,
    ) -> None:
        """For `open`, which see."""
        self.path = path
        self._clock = clock
        self._secret = secret
        self._lock = lock
        self._gather_seconds = gather_seconds
        self._wakes = Wakes()
        self._readers = Readers(path)
        self._writer = None if writer is None else Writer(writer, self._wakes.wake)

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
        lock = None if read_only else WriterLock(path)
        try:
            session = open_session(path, read_only=read_only, synchronous=synchronous)
            secret = reading.secret(session)
        except BaseException:
            if lock is not None:
                lock.release()
            raise
        if read_only:
            session.connection.close()
        writer = None if read_only else session
        return cls(path, clock or SystemClock(), secret, lock, writer, gather_seconds)

    def announce(self, url: str) -> None:
        """Note for others who would write that this process serves the store at `url`."""
        if self._lock is not None:
            self._lock.announce(url)

    async def close(self) -> None:
        """Write what is under way, then let go of the file; closing again changes nothing."""
        if self._writer is not None:
            await self._writer.close()
        await self._readers.close()
        self._wakes.wake(Wake)
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    async def _write(self, operation: Callable[[Session], T]) -> T:
        if self._writer is None:
            raise StoreUnavailable(
                f"the store {str(self.path)!r} was opened read-only; write through its server"
            )
        return await self._writer.submit(operation)

    def _now_us(self) -> int:
        return micros(self._clock.now())

    # -- rollouts ------------------------------------------------------------------------------

    async def enqueue(self, rollouts: Sequence[NewRollout]) -> int:
        """See `Store.enqueue`."""
        now_us = self._now_us()
        return await self._write(lambda session: lifecycle.enqueue(session, rollouts, now_us))

    async def claim(
        self,
        worker: str,
        *,
        run: str | None = None,
        limit: int = 1,
        lease_seconds: float = 30.0,
        wait_seconds: float = 0.0,
    ) -> list[Claim]:
        """See `Store.claim`.

        Cancelled while it waits it claims nothing; cancelled when the claim is already being
        written it returns what was claimed, which nobody else would know of.
        """
        patience = Patience(wait_seconds)
        lease_us = seconds_to_us(lease_seconds)

        def once(session: Session) -> list[Claim]:
            now = self._clock.now()
            return lifecycle.claim(session, worker, run, limit, lease_us, now, self._secret)

        while True:
            change = self._wakes.next(Wake.QUEUED)
            claims = await self._not_lost(asyncio.ensure_future(self._write(once)))
            if claims or not await patience.wait(change):
                return claims

    @staticmethod
    async def _not_lost(claiming: asyncio.Task[list[Claim]]) -> list[Claim]:
        try:
            return await asyncio.shield(claiming)
        except asyncio.CancelledError:
            claims = await claiming
            if not claims:
                raise
            return claims

    async def heartbeat(
        self, worker: str, attempt_ids: Sequence[AttemptId], *, lease_seconds: float = 30.0
    ) -> list[AttemptId]:
        """See `Store.heartbeat`."""
        now_us, lease_us = self._now_us(), seconds_to_us(lease_seconds)
        return await self._write(
            lambda session: lifecycle.heartbeat(session, worker, attempt_ids, lease_us, now_us)
        )

    async def append(self, events: Sequence[Event]) -> None:
        """See `Store.append`."""
        event_log.check(events)
        await self._write(lambda session: event_log.append(session, events))

    async def finish(
        self,
        attempt_id: AttemptId,
        state: AttemptState,
        *,
        failure: Failure | None = None,
        output: Any = None,
    ) -> Rollout:
        """See `Store.finish`."""
        lifecycle.check_finish(attempt_id, state, failure)
        now_us = self._now_us()
        return await self._write(
            lambda session: lifecycle.finish(session, attempt_id, state, failure, output, now_us)
        )

    async def cancel(self, rollout_ids: Sequence[RolloutId]) -> int:
        """See `Store.cancel`."""
        now_us = self._now_us()
        return await self._write(lambda session: lifecycle.cancel(session, rollout_ids, now_us))

    async def expire(self) -> int:
        """See `Store.expire`."""
        now_us = self._now_us()
        return await self._write(lambda session: lifecycle.expire(session, now_us))

    async def extend(self, attempt_ids: Sequence[AttemptId], seconds: float) -> None:
        """See `Store.extend`."""
        await self._write(lambda session: lifecycle.extend(session, attempt_ids, seconds))

    async def renew_all_leases(self, lease_seconds: float) -> int:
        """See `Store.renew_all_leases`."""
        lease_us, now_us = seconds_to_us(lease_seconds), self._now_us()
        return await self._write(
            lambda session: lifecycle.renew_all_leases(session, lease_us, now_us)
        )

    # -- reading -------------------------------------------------------------------------------

    async def rollouts(self, query: RolloutQuery) -> list[Rollout]:
        """See `Store.rollouts`."""
        return await self._readers.read(lambda session: reading.rollouts(session, query))

    async def attempts(self, rollout_ids: Sequence[RolloutId]) -> list[Attempt]:
        """See `Store.attempts`."""
        return await self._readers.read(lambda session: reading.attempts(session, rollout_ids))

    async def attempt(self, attempt_id: AttemptId) -> tuple[Rollout, Attempt]:
        """See `Store.attempt`."""
        return await self._readers.read(lambda session: reading.attempt(session, attempt_id))

    async def events(self, attempt_ids: Sequence[AttemptId]) -> list[list[Event]]:
        """See `Store.events`."""
        return await self._readers.read(
            lambda session: [event_log.read(session, ident) for ident in attempt_ids]
        )

    async def ended(self, run: str, *, after: int = 0, limit: int = 1000) -> list[Ended]:
        """See `Store.ended`."""
        return await self._readers.read(lambda session: reading.ended(session, run, after, limit))

    async def progress(
        self,
        run: str,
        mode: Mode,
        iteration: int,
        *,
        variant: str | None = None,
        seen: int = -1,
        wait_seconds: float = 0.0,
    ) -> Progress:
        """See `Store.progress`."""
        patience = Patience(wait_seconds)
        gathering = Patience(0.0)  # what changed before the call is told at once
        while True:
            change = self._next_end()
            progress = await self._readers.read(
                lambda session: reading.progress(session, run, mode, iteration, variant)
            )
            if progress.ended == seen:
                if not await patience.wait(change):
                    return progress
                gathering = Patience(min(self._gather_seconds, patience.left))
            elif progress.ended == progress.total or not await gathering.wait(change):
                return progress

    def _next_end(self) -> asyncio.Future[None]:
        if self._writer is not None:
            return self._wakes.next(Wake.ENDED)
        return asyncio.ensure_future(asyncio.sleep(_LOOK_SECONDS))

    async def summary(self, run: str) -> RunSummary:
        """See `Store.summary`."""
        return await self._readers.read(lambda session: reading.summary(session, run))

    async def runs(self) -> list[str]:
        """See `Store.runs`."""
        return await self._readers.read(reading.runs)

    # -- policies and workers ------------------------------------------------------------------

    async def put_policy(self, policy: Policy) -> None:
        """See `Store.put_policy`."""
        await self._write(lambda session: policies.put(session, policy))

    async def policies(self, run: str | None = None) -> list[Policy]:
        """See `Store.policies`."""
        return await self._readers.read(lambda session: policies.read(session, run))

    async def workers(self, *, seen_within_seconds: float = 30.0) -> list[Worker]:
        """See `Store.workers`."""
        since_us = self._now_us() - seconds_to_us(seen_within_seconds)
        return await self._readers.read(lambda session: reading.workers(session, since_us))

    # -- the training ledger -------------------------------------------------------------------

    async def take(
        self, run: str, iteration: int, *, min_group: int = 2, skip: Sequence[GroupId] = ()
    ) -> list[TakenGroup]:
        """See `Store.take`."""
        now_us = self._now_us()
        return await self._write(
            lambda session: ledger.take(session, run, iteration, min_group, skip, now_us)
        )

    async def commit(self, run: str, iteration: int) -> None:
        """See `Store.commit`."""
        await self._write(lambda session: ledger.commit(session, run, iteration))

    async def roll_back(self, run: str, *, after: int) -> list[int]:
        """See `Store.roll_back`."""
        return await self._write(lambda session: ledger.roll_back(session, run, after))

    async def ledger(self, run: str) -> list[LedgerEntry]:
        """See `Store.ledger`."""
        return await self._readers.read(lambda session: ledger.entries(session, run))

    # -- the store itself ----------------------------------------------------------------------

    async def secret(self) -> bytes:
        """See `Store.secret`."""
        return self._secret

    async def now(self) -> datetime:
        """See `Store.now`."""
        return self._clock.now()
