"""The one thread that writes what was recorded, whole rollouts at a time.

Invariant: a rollout is in the store with all that it recorded, or not at all; each item that was taken is
written or counted as lost; and a store that is away costs the agents nothing but the memory that they were
allowed.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import threading
from collections.abc import Awaitable, Callable, Sequence
from itertools import groupby
from typing import TypeVar

import msgspec

from lightningrl.errors import AuthError, LightningError, NotFound, StoreLocked, StoreUnavailable
from lightningrl.recorder.intake import EndedRollout, Feedback, Intake, Item
from lightningrl.recorder.redaction import Redact, RedactionFailed, redacted, redacted_reward
from lightningrl.schema import (
    Attempt,
    AttemptId,
    AttemptState,
    Event,
    EventId,
    RewardEvent,
    Rollout,
    RolloutId,
    RolloutState,
)
from lightningrl.store import Store, open_store
from lightningrl.store.base import AttemptDump, RolloutDump

_log = logging.getLogger(__name__)

T = TypeVar("T")

_ITEMS_AT_ONCE = 64
_BYTES_AT_ONCE = 8 << 20
_IDLE_SECONDS = 0.5
"""How long the thread may take to notice that it shall stop."""
_GATHER_SECONDS = 0.2
"""How late a rollout may be written, so that those that end meanwhile share its transaction."""
_FIRST_PAUSE_SECONDS = 0.5
_LONGEST_PAUSE_SECONDS = 15.0

_AWAY = (StoreUnavailable, StoreLocked, AuthError)
"""What may be otherwise when it is tried again: the server, the file's other writer, the key."""

_decode = msgspec.msgpack.Decoder(Event).decode


class StoreWriter:
    """Takes from an intake and writes to the store at a URL, until it is stopped."""

    def __init__(self, intake: Intake, url: str, key: str | None, redact: Redact | None) -> None:
        """Begin; the store is opened when there is something to write."""
        self.written = 0
        """Rollouts and pieces of feedback that the store has acknowledged."""
        self._intake = intake
        self._url, self._key, self._redact = url, key, redact
        self._name = f"{socket.gethostname()}-{os.getpid()}"
        self._store: Store | None = None
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="lightningrl-recorder", daemon=True)
        self._thread.start()

    def stop(self, timeout_seconds: float) -> None:
        """Let go of the store; what was not written by then is not."""
        self._stopping.set()
        self._thread.join(timeout_seconds)

    def _run(self) -> None:
        with asyncio.Runner() as runner:
            while not self._stopping.is_set():
                items = self._intake.take(
                    _ITEMS_AT_ONCE, _BYTES_AT_ONCE, _IDLE_SECONDS, _GATHER_SECONDS
                )
                if items:
                    runner.run(self._write(items))
            if self._store is not None:
                runner.run(self._store.close())

    async def _write(self, items: Sequence[Item]) -> None:
        for kind, group in groupby(items, type):
            if kind is EndedRollout:
                await self._write_rollouts([one for one in group if isinstance(one, EndedRollout)])
            else:
                for one in group:
                    assert isinstance(one, Feedback)  # there are two kinds of items
                    await self._write_feedback(one)

    # -- rollouts ------------------------------------------------------------------------------

    async def _write_rollouts(self, items: Sequence[EndedRollout]) -> None:
        ready: list[tuple[EndedRollout, RolloutDump]] = []
        for item in items:
            try:
                dump = redacted(self._dump(item), self._redact)
            except RedactionFailed as failed:
                self._drop(item, "redaction", f"{failed.reason}; nothing of it is written")
                continue
            except Exception as error:  # noqa: BLE001 - one rollout's loss, not the thread's end
                self._drop(item, "refused", _reason(error))
                continue
            if dump is None:
                self._intake.settle(item)
            else:
                ready.append((item, dump))
        if ready:
            await self._load(ready)

    def _dump(self, item: EndedRollout) -> RolloutDump:
        failed = item.failure is not None
        spec, rollout_id = item.spec, item.spec.id
        attempt = Attempt(
            id=attempt_id(rollout_id),
            rollout_id=rollout_id,
            number=1,
            state=AttemptState.FAILED if failed else AttemptState.SUCCEEDED,
            worker=self._name,
            lease_expires_at=item.ended_at,
            started_at=item.started_at,
            ended_at=item.ended_at,
            failure=item.failure,
            output=None if failed else msgspec.msgpack.decode(item.output),
        )
        rollout = Rollout(
            spec=spec,
            state=RolloutState.FAILED if failed else RolloutState.SUCCEEDED,
            attempts=1,
            reward=None,
            created_at=item.started_at,
            ended_at=item.ended_at,
        )
        events = tuple(_decode(one) for one in item.events)
        return RolloutDump(0, rollout, (AttemptDump(attempt, item.ended_at, events),))

    async def _load(self, ready: Sequence[tuple[EndedRollout, RolloutDump]]) -> None:
        dumps = [dump for _, dump in ready]
        ids = [dump.rollout.id for dump in dumps]
        try:
            await self._patiently(lambda store: store.load(rollouts=dumps, completed=ids))
        except Exception as error:  # noqa: BLE001 - whatever one rollout is refused for, others go on
            if len(ready) > 1:
                for one in ready:
                    await self._load([one])
            else:
                self._drop(ready[0][0], "refused", _reason(error))
            return
        for item, _ in ready:
            self.written += 1
            self._intake.settle(item)

    # -- feedback ------------------------------------------------------------------------------

    async def _write_feedback(self, item: Feedback) -> None:
        try:
            kept = await self._patiently(lambda store: self._append(store, item))
        except RedactionFailed as failed:
            self._drop(item, "redaction", failed.reason)
        except NotFound:
            self._drop(item, "unknown rollout", "feedback for rollouts that the store doesn't have")
        except Exception as error:  # noqa: BLE001 - as above
            self._drop(item, "refused", _reason(error))
        else:
            self.written += kept
            self._intake.settle(item)

    async def _append(self, store: Store, item: Feedback) -> bool:
        """Add the reward, above those of the same step and name; whether there was one to add."""
        attempts = await store.attempts([RolloutId(item.rollout_id)])
        if not attempts:
            raise NotFound(f"there is no rollout {item.rollout_id!r}")
        latest = attempts[-1].id
        [events] = await store.events([latest])
        there = [
            one
            for one in events
            if isinstance(one, RewardEvent) and (one.step_id, one.name) == (item.step_id, item.name)
        ]
        if any(one.id == item.event_id for one in there):
            return True  # its answer got lost
        event = RewardEvent(
            id=EventId(item.event_id),
            attempt_id=latest,
            at=item.at,
            value=item.value,
            step_id=item.step_id,
            name=item.name,
            source=item.source,
            revision=1 + max((one.revision for one in there), default=-1),
        )
        kept = redacted_reward(event, self._redact)
        if kept is not None:
            await store.append([kept])
        return kept is not None

    # -- the store -----------------------------------------------------------------------------

    async def _patiently(self, work: Callable[[Store], Awaitable[T]]) -> T:
        """Do `work` on the store, again and again while that is away and nobody says stop."""
        pause, away = _FIRST_PAUSE_SECONDS, False
        while True:
            try:
                if self._store is None:
                    self._store = open_store(self._url, key=self._key)
                result = await work(self._store)
            except _AWAY as error:
                if not away:
                    _log.warning("what is recorded can't be written now: %s", error)
                away = True
                if self._stopping.wait(pause):  # the loop is this thread's own and has nothing else
                    raise
                pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
            else:
                if away:
                    _log.warning("what was recorded can be written again")
                return result

    def _drop(self, item: Item, reason: str, detail: str) -> None:
        self._intake.note_drop(reason, detail)
        self._intake.settle(item)


def attempt_id(rollout_id: str) -> AttemptId:
    """The id of the one attempt of a recorded rollout."""
    return AttemptId(f"{rollout_id}-1")


def _reason(error: Exception) -> str:
    # What other exceptions say may be of the record.
    return str(error) if isinstance(error, LightningError) else type(error).__name__
