"""Where captured events go until the runner has stored them.

Invariant: an event given to `BufferSink.emit` is returned by `pending` until it is acknowledged, in
the order of `emit`, whatever thread it came from.
"""

from __future__ import annotations

import threading
from typing import Protocol

from lightningrl.schema import Event


class Sink(Protocol):
    """Takes the events of one attempt; called from any thread, and must not block."""

    def emit(self, event: Event) -> None:
        """Take one event."""
        ...


class BufferSink:
    """Keeps every event of one attempt, and knows which of them are stored already."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._events: list[Event] = []
        self._stored = 0

    def emit(self, event: Event) -> None:
        """Take one event; never raises."""
        with self._lock:
            self._events.append(event)

    @property
    def events(self) -> tuple[Event, ...]:
        """All events so far, in the order in which they were emitted."""
        with self._lock:
            return tuple(self._events)

    def pending(self, limit: int | None = None) -> list[Event]:
        """The first `limit` events that are not acknowledged yet. `None`: all of them."""
        with self._lock:
            end = None if limit is None else self._stored + limit
            return self._events[self._stored : end]

    def acknowledge(self, count: int) -> None:
        """Say that the first `count` pending events are stored."""
        with self._lock:
            self._stored = min(self._stored + count, len(self._events))
