"""What attempts were answered so far, for requests that refer to it by a response's id.

Invariant: what is remembered of an attempt is what the store has of it. So a gateway that shares its
store remembers nothing between two requests: another one may have answered meanwhile.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict

from lightningrl.conversation import Recorded
from lightningrl.schema import AttemptId, CallEvent
from lightningrl.store.base import Store

_ATTEMPTS = 256
"""Attempts remembered at a time; those that were silent longest are read anew."""


class Recollection:
    """Recorded calls by attempt: read once, then kept in step with what this gateway commits."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._known: OrderedDict[AttemptId, Recorded] = OrderedDict()
        self._reading = asyncio.Lock()
        self._noted: list[CallEvent] | None = None
        """What was committed while an attempt is being read. `None`: none is."""

    async def of(self, attempt_id: AttemptId) -> Recorded:
        """The attempt's calls so far."""
        if self._store.shared:
            return Recorded(await self._store.calls(attempt_id))
        async with self._reading:
            found = self._known.get(attempt_id)
            if found is None:
                found = self._known[attempt_id] = await self._read(attempt_id)
        self._known.move_to_end(attempt_id)
        if len(self._known) > _ATTEMPTS:
            self._known.popitem(last=False)
        return found

    async def _read(self, attempt_id: AttemptId) -> Recorded:
        noted = self._noted = []
        try:
            calls = await self._store.calls(attempt_id)
        finally:
            self._noted = None
        there = {call.id for call in calls}
        late = [one for one in noted if one.attempt_id == attempt_id and one.id not in there]
        return Recorded([*calls, *late])

    def note(self, call: CallEvent) -> None:
        """A call was committed."""
        if self._noted is not None:
            self._noted.append(call)
        if (known := self._known.get(call.attempt_id)) is not None:
            known.add(call)
