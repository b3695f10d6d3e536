"""Who is told of recorded calls: counters, logs, traces.

Invariant: an observer is told of a call once, after its record is committed and before the agent is
answered; it only looks, and is quick, since the agent waits for it.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

from lightningrl.schema import CallEvent, RolloutId


class Recorded(NamedTuple):
    """A call whose record is on disk."""

    event: CallEvent
    run: str
    rollout_id: RolloutId
    traceparent: str | None
    """The W3C header that the agent sent. `None`: it sent none."""
    queued_seconds: float = 0.0
    """Time in which it waited for its turn among the attempt's calls."""


class Observer(Protocol):
    """Somebody who is told of recorded calls."""

    def recorded(self, call: Recorded) -> None:
        """A call was recorded, whatever became of it."""
        ...
