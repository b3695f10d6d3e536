"""An attempt as the agent's process sees it, without a server behind it."""

from __future__ import annotations

from typing import Any

from lightningrl.capture.context import RolloutContext
from lightningrl.capture.sink import BufferSink
from lightningrl.schema import AttemptId, RolloutId


def rollout_context(**fields: Any) -> RolloutContext:
    """A context whose events stay in memory; `fields` are those of `RolloutContext` that matter."""
    plain: dict[str, Any] = {
        "rollout_id": RolloutId("r1"),
        "attempt_id": AttemptId("a1"),
        "server_url": "http://server",
        "key": "key",
        "sink": BufferSink(),
    }
    return RolloutContext(**{**plain, **fields})
