"""Brings captured events to the store, for all attempts of a process together.

Invariant: when `flush` returns, every event emitted before it was called is in the store, or its
attempt is no longer running there. Events of one attempt arrive in the order in which they were emitted.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping

from lightningrl.capture.sink import BufferSink
from lightningrl.errors import StaleAttempt
from lightningrl.schema import AttemptId, Event, LogEvent
from lightningrl.store.base import Store

_log = logging.getLogger(__name__)

BATCH = 2000
"""Most events of one attempt in one append."""


class EventFlusher:
    """Appends what the sinks of running attempts hold."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._sinks: dict[AttemptId, BufferSink] = {}
        self._lock = asyncio.Lock()

    def add(self, attempt_id: AttemptId, sink: BufferSink) -> None:
        """Look after the sink of an attempt that begins."""
        self._sinks[attempt_id] = sink

    def remove(self, attempt_id: AttemptId) -> None:
        """Forget an attempt that has ended."""
        self._sinks.pop(attempt_id, None)

    async def flush(self) -> None:
        """Store all that is pending; appends that wait for one another become one.

        Raises:
            StoreUnavailable: nothing is lost; flush again.
        """
        async with self._lock:
            while pending := self._pending():
                await self._append(pending)

    def _pending(self) -> dict[AttemptId, list[Event]]:
        batches = {one: sink.pending(BATCH) for one, sink in self._sinks.items()}
        return {attempt_id: events for attempt_id, events in batches.items() if events}

    async def _append(self, pending: Mapping[AttemptId, list[Event]]) -> None:
        try:
            await self._store.append([event for events in pending.values() for event in events])
        except StaleAttempt:
            # One attempt that ended elsewhere refuses the whole batch: find out which.
            for attempt_id, events in pending.items():
                await self._append_one(attempt_id, events)
        for attempt_id, events in pending.items():
            sink = self._sinks.get(attempt_id)
            if sink is not None:
                sink.acknowledge(len(events))

    async def _append_one(self, attempt_id: AttemptId, events: list[Event]) -> None:
        try:
            await self._store.append(events)
        except StaleAttempt:
            # Logs are still accepted, and help. So are rewards, but a lost attempt's judge nothing.
            logs = [one for one in events if isinstance(one, LogEvent)]
            _log.info("attempt %r ended elsewhere; its steps are not stored", attempt_id)
            if logs:
                await self._store.append(logs)
