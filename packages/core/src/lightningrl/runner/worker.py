"""One worker process: leases attempts, runs them on one event loop, keeps their leases alive.

Invariant: every attempt that this process leased is finished, released, or left to its lease; never
two of these. Started by `supervisor`, once for each process.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass, field

from lightningrl.errors import LightningError, StoreUnavailable
from lightningrl.runner.attempt import AttemptRunner
from lightningrl.runner.threads import abandoned_threads
from lightningrl.schema import AttemptId, Claim
from lightningrl.store.base import Store

_log = logging.getLogger(__name__)

_FLUSH_SECONDS = 1.0
_GATHER_SECONDS = 0.05
"""How long a busy worker whose slots were all taken waits for more of them to be free, so that attempts
which end one after the other are replaced by one poll and not by one each."""
_STORE_PAUSE_SECONDS = 1.0
"""Between tries while the store is away."""
_OVERDUE_SECONDS = 1.0
"""Between questions to the store once an attempt has used up its time."""


@dataclass(frozen=True)
class WorkerLimits:
    """How much a worker does at a time, and for how long it waits."""

    concurrency: int = 32
    """Attempts at a time."""
    lease_seconds: float = 30.0
    wait_seconds: float = 1.0
    """Longest poll for a rollout; a stop waits for its end, and so does the end of every run."""
    grace_seconds: float = 20.0
    """After a stop, attempts may go on for so long before they are released."""


@dataclass(eq=False)
class _Running:
    """An attempt under way."""

    claim: Claim
    task: asyncio.Task[None]
    overdue_at: float
    """On the loop's clock: from then on the store is asked whether it timed out."""
    ended_elsewhere: bool = False
    """The store took it away: nothing may be written any more."""


def worker_name() -> str:
    """A name for this process that no other has, readable in `lightningrl show`."""
    return f"{socket.gethostname()}-{os.getpid()}-{os.urandom(3).hex()}"


@dataclass(eq=False)
class Worker:
    """Leases and runs attempts until it is stopped."""

    store: Store
    runner: AttemptRunner
    run_name: str
    limits: WorkerLimits = WorkerLimits()
    name: str = field(default_factory=worker_name)
    _running: dict[AttemptId, _Running] = field(default_factory=dict[AttemptId, _Running])
    _stop: asyncio.Event = field(default_factory=asyncio.Event)
    _freed: asyncio.Event = field(default_factory=asyncio.Event)

    def stop(self) -> None:
        """Lease nothing more; end when what runs has ended, or the grace period has."""
        self._stop.set()
        self._freed.set()

    @property
    def tainted(self) -> bool:
        """A user's thread can't be stopped: the process should be replaced when it is idle."""
        return abandoned_threads() > 0

    async def run(self) -> None:
        """Work until `stop`, or until this process should be replaced and holds nothing.

        Raises:
            Exception: what ended the renewing of leases or the storing of steps, without which
                nothing can be run; what ran was wound down.
        """
        service = [asyncio.create_task(self._beat()), asyncio.create_task(self._flush())]
        for task in service:
            task.add_done_callback(lambda _: self.stop())
        try:
            await self._lease()
            await self._wind_down()
        finally:
            for task in service:
                task.cancel()
            ends = await asyncio.gather(*service, return_exceptions=True)
        for end in ends:
            if isinstance(end, Exception):
                raise end

    async def _lease(self) -> None:
        while not self._stop.is_set():
            free = 0 if self.tainted else self.limits.concurrency - len(self._running)
            if free <= 0:
                if not self._running:
                    return  # tainted and idle
                self._freed.clear()
                await self._freed.wait()
                if self._running:
                    await self._pause(_GATHER_SECONDS)
                continue
            for claim in await self._claim(free):
                if self._stop.is_set():
                    await self._give_back(claim)
                else:
                    self._start(claim)

    async def _claim(self, free: int) -> list[Claim]:
        # Never cancelled: the server may have leased what a cancelled poll would have brought.
        try:
            return await self.store.claim(
                self.name,
                run=self.run_name,
                limit=free,
                lease_seconds=self.limits.lease_seconds,
                wait_seconds=self.limits.wait_seconds,
            )
        except StoreUnavailable as error:
            _log.warning("no rollouts can be leased now: %s", error)
            await self._pause(_STORE_PAUSE_SECONDS)
            return []

    async def _pause(self, seconds: float) -> None:
        """Wait, but not past a stop."""
        try:
            await asyncio.wait_for(self._stop.wait(), seconds)
        except TimeoutError:
            return

    def _start(self, claim: Claim) -> None:
        loop = asyncio.get_running_loop()
        task = asyncio.create_task(self.runner.run(claim), name=claim.attempt.id)
        overdue_at = loop.time() + claim.rollout.spec.timeout_seconds
        self._running[claim.attempt.id] = _Running(claim, task, overdue_at)
        task.add_done_callback(lambda done: self._ended(claim.attempt.id, done))

    def _ended(self, attempt_id: AttemptId, task: asyncio.Task[None]) -> None:
        del self._running[attempt_id]
        self._freed.set()
        if not task.cancelled() and task.exception() is not None:
            _log.error("attempt %r was left to its lease", attempt_id, exc_info=task.exception())

    async def _beat(self) -> None:
        """Renew the leases, and cancel what the store has ended: lost, timed out, cancelled."""
        loop = asyncio.get_running_loop()
        period = self.limits.lease_seconds / 3
        while True:
            now = loop.time()
            overdue = any(one.overdue_at <= now for one in self._running.values())
            try:
                await self._renew(overdue)
                pause = min([period, *(one.overdue_at - now for one in self._running.values())])
            except LightningError as error:
                _log.warning("leases can't be renewed now: %s", error)
                pause = _STORE_PAUSE_SECONDS
            await asyncio.sleep(min(period, max(pause, _OVERDUE_SECONDS)))

    async def _renew(self, overdue: bool) -> None:
        attempt_ids = list(self._running)
        if not attempt_ids:
            return
        if overdue:
            # The store judges, not this clock: time held by a weight sync doesn't count.
            await self.store.expire()
        ended = await self.store.heartbeat(
            self.name, attempt_ids, lease_seconds=self.limits.lease_seconds
        )
        for attempt_id in ended:
            running = self._running.get(attempt_id)
            if running is not None and not running.ended_elsewhere:
                _log.info("attempt %r has ended in the store: stopping its agent", attempt_id)
                running.ended_elsewhere = True
                running.task.cancel()

    async def _flush(self) -> None:
        """Store what long attempts emit while they run."""
        while True:
            await asyncio.sleep(_FLUSH_SECONDS)
            try:
                await self.runner.flusher.flush()
            except LightningError as error:
                _log.warning("steps can't be stored now: %s", error)

    async def _wind_down(self) -> None:
        """Let what runs end within the grace period, and give back the rest."""
        held = list(self._running.values())
        if held:
            await asyncio.wait([one.task for one in held], timeout=self.limits.grace_seconds)
        await self._release([one for one in held if not one.task.done()])

    async def _release(self, held: Sequence[_Running]) -> None:
        for one in held:
            one.task.cancel()
        if held:
            await asyncio.wait([one.task for one in held], timeout=self.limits.grace_seconds)
        for one in held:
            if one.task.cancelled() and not one.ended_elsewhere:
                await self._give_back(one.claim)

    async def _give_back(self, claim: Claim) -> None:
        try:
            await self.runner.release(claim, f"the runner {self.name!r} was stopped")
        except StoreUnavailable as error:
            _log.warning("attempt %r is left to its lease: %s", claim.attempt.id, error)
