"""What of requests is left out of what the engine gets, or refused, as the recipe says: unknown fields, hosted tools.

Invariant: no field is left out without a line in the attempt's log, one for each field, up to a limit.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from lightningrl.errors import StoreError
from lightningrl.gateway.dialects.base import AgentRequest, Spoken
from lightningrl.gateway.identity import AttemptContext
from lightningrl.gateway.metrics import Metrics
from lightningrl.machine.clock import Clock
from lightningrl.schema import EventId, LogEvent, LogTopic, Policy, new_id
from lightningrl.store.base import Store

_LOG = logging.getLogger(__name__)

MOST_TOLD = 100
"""Fields that an attempt's log names: a client that makes names up must not fill the store."""
_LONGEST = 100
"""Characters of a field's path that are told."""


class UnknownFields:
    """Judges the unknown fields of calls."""

    def __init__(self, store: Store, clock: Clock, metrics: Metrics) -> None:
        self._store = store
        self._clock = clock
        self._metrics = metrics

    async def judge(
        self, spoken: Spoken, request: AgentRequest, policy: Policy, context: AttemptContext
    ) -> None:
        """Tell of a request's unknown fields.

        Raises:
            Refusal: 400, the run refuses them.
        """
        if policy.refuse_unknown:
            raise spoken.unknown(request.unknown[0])
        self._metrics.left_out(len(request.unknown))
        for name in request.unknown:
            said = f"the field {name[:_LONGEST]!r} of {a_request(spoken)} is unknown here"
            await self._tell(context, said, LogTopic.UNKNOWN_FIELD)

    async def tell_hosted(
        self, spoken: Spoken, types: Sequence[str], context: AttemptContext
    ) -> None:
        """Tell of tools that the service would run, which were left out."""
        for one in types:
            said = f"the tool {one[:_LONGEST]!r} of {a_request(spoken)} is run by nobody here"
            await self._tell(context, said, LogTopic.HOSTED_TOOL)

    async def _tell(self, context: AttemptContext, said: str, topic: LogTopic) -> None:
        """Leave one line in the attempt's log."""
        if said in context.left_out or len(context.left_out) >= MOST_TOLD:
            return
        context.left_out.add(said)
        event = LogEvent(
            id=EventId(new_id("log")),
            attempt_id=context.id,
            at=self._clock.now(),
            level="info",
            message=f"{said}: it was left out",
            topic=topic,
        )
        try:
            await self._store.append([event])
        except StoreError as error:
            _LOG.warning("attempt %r: what was left out could not be noted: %s", context.id, error)


def a_request(spoken: Spoken) -> str:
    """What a request of a dialect is called in a sentence."""
    dialect = spoken.dialect.value
    return f"{'an' if dialect[0] in 'aeiou' else 'a'} {dialect} request"
