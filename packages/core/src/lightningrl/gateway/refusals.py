"""Refused requests are told apart from calls and counted: an agent that catches the error looks well.

Invariant: what belongs to an attempt is in its log, up to a limit; what belongs to none is counted here. Neither
changes what the client is answered.
"""

from __future__ import annotations

import logging
from collections import Counter

from lightningrl.errors import StoreError
from lightningrl.gateway.asgi import Refusal
from lightningrl.gateway.identity import AttemptContext, Unidentified
from lightningrl.machine.clock import Clock
from lightningrl.schema import EventId, LogEvent, LogTopic, new_id
from lightningrl.store.base import Store

_LOG = logging.getLogger(__name__)

MOST_TOLD = 100
"""Refusals that an attempt's log tells of: a client that asks for ever must not fill the store."""


class Refusals:
    """What was refused at this gateway since its start."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self.unidentified: Counter[str] = Counter()
        """Where model calls came from that nothing showed to be of any attempt, see `Origin` -> how many."""

    def count(self, refusal: Refusal) -> None:
        """A model call was refused before its attempt was known."""
        if isinstance(refusal, Unidentified):
            self.unidentified[refusal.origin.value] += 1

    async def tell(self, context: AttemptContext, refusal: Refusal) -> None:
        """Leave a line in the attempt's log, unless a call's record tells of it or the engine is to blame."""
        if refusal.recorded or refusal.status >= 500 or context.refusals >= MOST_TOLD:
            return
        context.refusals += 1
        event = LogEvent(
            id=EventId(new_id("log")),
            attempt_id=context.id,
            at=self._clock.now(),
            level="warning",
            message=f"a request was refused ({refusal.status}, {refusal.code}): {refusal.message}",
            topic=LogTopic.REFUSED,
        )
        try:
            await self._store.append([event])
        except StoreError as error:
            _LOG.warning("attempt %r: a refusal could not be noted: %s", context.id, error)
