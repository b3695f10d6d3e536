"""A log line for each recorded call, for those who asked for them (log level INFO).

Invariant: a line names run, rollout, attempt and call, and holds no message, token or key; of a failed
call it says what the engine said, which may quote the request.
"""

from __future__ import annotations

import logging

from lightningrl.gateway.observe import Recorded
from lightningrl.schema import CallStatus

LOG = logging.getLogger(__name__)


class CallLog:
    """An `Observer`."""

    def recorded(self, call: Recorded) -> None:
        """See `Observer.recorded`."""
        event = call.event
        level = logging.INFO if event.status is CallStatus.DELIVERED else logging.WARNING
        if not LOG.isEnabledFor(level):
            return
        fields = {
            "run": call.run,
            "rollout": call.rollout_id,
            "attempt": event.attempt_id,
            "call": event.id,
            "step": event.step_id,
            "agent": event.agent,
            "policy": event.policy,
            "version": event.version_end,
            "endpoint": event.endpoint,
            "http_status": event.http_status,
            "latency_ms": round(event.latency_ms, 1),
            "held_ms": round(event.held_ms, 1),
            "prompt_tokens": event.prompt_tokens,
            "completion_tokens": event.completion_tokens,
        }
        LOG.log(
            level,
            "call %s of rollout %s %s in %.0f ms%s",
            event.id,
            call.rollout_id,
            event.status.value,
            event.latency_ms,
            f": {event.error}" if event.error else "",
            extra={"fields": fields},
        )
