"""What attempts were answered so far, for requests that depend on it.

Invariants:
- What is remembered of an attempt is what the store has of it, in the store's order. Where other gateways write to the
  same store it is asked each time whether it has more calls, and they are read only then.
- Reading one attempt holds up no other.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict

from lightningrl.conversation.history import Recorded
from lightningrl.schema import AttemptId, CallEvent, EventId
from lightningrl.store.base import Store

_ATTEMPTS = 256
"""Attempts remembered at a time; those that were silent longest are read anew."""

_MEMORY_BYTES = 128 << 20
"""Bound on what is remembered of them, but for the latest."""


class _Known:
    """What is known of one attempt."""

    def __init__(self) -> None:
        self.recorded: Recorded | None = None
        """`None`: it was not read yet."""
        self.ids: set[EventId] = set()
        """Of the calls in it."""
        self.reading = asyncio.Lock()
        self.noted: list[CallEvent] | None = None
        """What was committed while it is being read. `None`: it is not."""

    @property
    def size(self) -> int:
        """About how many bytes are held."""
        return self.recorded.size if self.recorded is not None else 0


class Recollection:
    """Recorded calls by attempt: read once, then kept in step with what this gateway commits."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._known: OrderedDict[AttemptId, _Known] = OrderedDict()
        self._held = 0
        """Sum of their sizes."""

    async def of(self, attempt_id: AttemptId) -> Recorded:
        """The attempt's calls so far."""
        known = self._known.setdefault(attempt_id, _Known())
        self._known.move_to_end(attempt_id)
        self._forget()
        if known.recorded is not None and not self._store.shared:
            return known.recorded
        async with known.reading:
            if known.recorded is None or self._store.shared:
                before = known.size
                known.recorded = await self._read(attempt_id, known)
                if self._known.get(attempt_id) is known:  # else it was forgotten meanwhile
                    self._held += known.size - before
            return known.recorded

    async def _read(self, attempt_id: AttemptId, known: _Known) -> Recorded:
        had = known.recorded
        noted = known.noted = []
        try:
            calls = await self._store.calls(attempt_id, above=had.count if had else 0)
        finally:
            known.noted = None
        if had is not None and not calls:
            return had
        every = {call.id: call for call in (*calls, *noted)}
        known.ids = set(every)
        return Recorded(every.values(), to_rewrite=True)

    def _forget(self) -> None:
        while len(self._known) > _ATTEMPTS or (self._held > _MEMORY_BYTES and len(self._known) > 1):
            self._held -= self._known.popitem(last=False)[1].size

    def note(self, call: CallEvent) -> None:
        """A call was committed. One that was read already, or that gives an answer to its step again, is not another."""
        if (known := self._known.get(call.attempt_id)) is None:
            return
        if known.noted is not None:
            known.noted.append(call)
        if known.recorded is not None and call.id not in known.ids:
            before = known.size
            known.ids.add(call.id)
            known.recorded.add(call)
            self._held += known.size - before
