"""Brings captured events to the store, for all attempts of a process together.

Invariant: when `flush` returns, every event emitted before it was called is in the store, or its
attempt is no longer running there, or `refusal` says why the store can't hold it. Events of one attempt
arrive in the order in which they were emitted, and none of one attempt keeps those of another back.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence

from lightningrl.capture.sink import BufferSink
from lightningrl.errors import ConfigError, NotFound, StaleAttempt
from lightningrl.schema import AttemptId, Event, Failure, FailureKind, LogEvent
from lightningrl.store.base import Store

_log = logging.getLogger(__name__)

BATCH = 2000
"""Most events of one attempt in one append."""

_UNSTORABLE = (ConfigError, ValueError, OverflowError, TypeError)
"""What is raised for an event that is too long for the server, or that can't be encoded."""


class EventFlusher:
    """Appends what the sinks of running attempts hold."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._sinks: dict[AttemptId, BufferSink] = {}
        self._refusals: dict[AttemptId, Failure] = {}
        self._lock = asyncio.Lock()

    def add(self, attempt_id: AttemptId, sink: BufferSink) -> None:
        """Look after the sink of an attempt that begins."""
        self._sinks[attempt_id] = sink

    def remove(self, attempt_id: AttemptId) -> None:
        """Forget an attempt that has ended."""
        self._sinks.pop(attempt_id, None)
        self._refusals.pop(attempt_id, None)

    def refusal(self, attempt_id: AttemptId) -> Failure | None:
        """The failure of an attempt one of whose events can't be stored. `None`: all could be.

        An attempt with holes must not be trained on, and trying it again would lead here again.
        """
        return self._refusals.get(attempt_id)

    async def flush(self) -> None:
        """Store all that is pending now; appends that wait for one another become one.

        Raises:
            StoreUnavailable: nothing is lost; flush again.
        """
        async with self._lock:
            full = True
            while full:
                pending = self._pending()
                # Not until nothing is pending: others go on emitting, and their flush is their own.
                full = any(len(events) == BATCH for events in pending.values())
                if pending:
                    await self._append(pending)

    def _pending(self) -> dict[AttemptId, list[Event]]:
        batches = {one: sink.pending(BATCH) for one, sink in self._sinks.items()}
        return {attempt_id: events for attempt_id, events in batches.items() if events}

    async def _append(self, pending: Mapping[AttemptId, list[Event]]) -> None:
        try:
            await self._store.append([event for events in pending.values() for event in events])
        except (StaleAttempt, NotFound, *_UNSTORABLE):
            # One attempt refuses the whole batch: find out which.
            for attempt_id, events in pending.items():
                await self._append_one(attempt_id, events)
        for attempt_id, events in pending.items():
            sink = self._sinks.get(attempt_id)
            if sink is not None:
                sink.acknowledge(len(events))

    async def _append_one(self, attempt_id: AttemptId, events: list[Event]) -> None:
        try:
            await self._store.append(events)
        except (StaleAttempt, NotFound):
            # Logs are still accepted, and help. So are rewards, but a lost attempt's judge nothing.
            logs = [one for one in events if isinstance(one, LogEvent)]
            _log.info("attempt %r ended elsewhere; its steps are not stored", attempt_id)
            if logs:
                await self._append_logs(attempt_id, logs)
        except _UNSTORABLE as error:
            if len(events) > 1:
                middle = len(events) // 2
                await self._append_one(attempt_id, events[:middle])
                await self._append_one(attempt_id, events[middle:])
            else:
                self._refuse(attempt_id, events[0], error)

    async def _append_logs(self, attempt_id: AttemptId, logs: Sequence[LogEvent]) -> None:
        try:
            await self._store.append(logs)
        except (NotFound, *_UNSTORABLE) as error:
            _log.warning("%d logs of attempt %r are not stored: %s", len(logs), attempt_id, error)

    def _refuse(self, attempt_id: AttemptId, event: Event, error: Exception) -> None:
        message = (
            f"event {event.id!r} ({type(event).__name__}) of attempt {attempt_id!r} can't be stored,"
            f" so the attempt fails: {error}"
        )
        _log.warning("%s", message)
        self._refusals.setdefault(attempt_id, Failure(kind=FailureKind.AGENT, message=message))
