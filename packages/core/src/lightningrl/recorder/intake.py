"""What waits in memory to be written, and never more of it than was allowed.

Invariant: the bytes held are those of open and of ended rollouts that are neither written nor dropped, and
never exceed the limit: what would exceed it is dropped, with the whole rollout that it is of.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter, deque
from dataclasses import dataclass, field
from datetime import datetime

import msgspec

from lightningrl.schema import Event, Failure, NewRollout, RewardEvent, StepId

_log = logging.getLogger(__name__)

_SAY_AGAIN_SECONDS = 60.0
"""Between two log lines about rollouts that are dropped for one reason."""


@dataclass(slots=True, eq=False)
class OpenRollout:
    """The sink of a rollout that is under way: its events, encoded, so that their bytes are known."""

    intake: Intake = field(repr=False)
    events: list[bytes] = field(default_factory=list[bytes], repr=False)
    held_bytes: int = 0
    dropped: bool = False
    """It doesn't fit: nothing of it is kept."""
    sealed: bool = False
    """The rollout has ended: what still comes, from a thread of the agent's, is too late."""
    rewards: list[RewardEvent] = field(default_factory=list[RewardEvent], repr=False)
    """Those among its events."""

    def emit(self, event: Event) -> None:
        """Take one event; never blocks on I/O."""
        if isinstance(event, RewardEvent):
            self.rewards.append(event)
        encoded = msgspec.msgpack.encode(event)
        self.intake.hold(self, encoded)


@dataclass(frozen=True, slots=True, eq=False)
class EndedRollout:
    """A rollout that is whole."""

    spec: NewRollout
    events: tuple[bytes, ...]
    held_bytes: int
    failure: Failure | None
    output: bytes
    """JSON as MessagePack."""
    started_at: datetime
    ended_at: datetime


@dataclass(frozen=True, slots=True, eq=False)
class Feedback:
    """A reward that came when its rollout had ended."""

    event_id: str
    rollout_id: str
    value: float
    step_id: StepId | None
    name: str
    source: str
    at: datetime
    held_bytes: int = 512


Item = EndedRollout | Feedback


class Intake:
    """Between the agents' threads and the one that writes."""

    def __init__(self, limit_bytes: int) -> None:
        """Hold up to `limit_bytes`."""
        self._limit = limit_bytes
        self.begin_anew()

    def begin_anew(self) -> None:
        """Hold nothing: what was held is another process's, and so may be the lock."""
        self._changed = threading.Condition()
        self._held = 0
        self._items: deque[Item] = deque()
        self._enough = 1  # items for which the writer waits no longer
        self._put = 0
        self._waited_for = 0
        self._settled = 0
        self._drops: Counter[str] = Counter()
        self._said: dict[str, tuple[float, int]] = {}

    # -- the agents' side ----------------------------------------------------------------------

    def hold(self, rollout: OpenRollout, encoded: bytes) -> None:
        """Keep one event of `rollout`, or drop the rollout where there is no room."""
        with self._changed:
            if rollout.dropped or rollout.sealed:
                return
            if self._held + len(encoded) <= self._limit:
                self._held += len(encoded)
                rollout.held_bytes += len(encoded)
                rollout.events.append(encoded)
                return
            self._forget(rollout)
        self.note_drop("no room", f"{self._limit} bytes wait to be written")

    def seal(self, rollout: OpenRollout) -> bool:
        """The rollout has ended; `False`: it was dropped, and is counted."""
        with self._changed:
            rollout.sealed = True
            return not rollout.dropped

    def _forget(self, rollout: OpenRollout) -> None:
        self._held -= rollout.held_bytes
        rollout.events.clear()
        rollout.held_bytes, rollout.dropped = 0, True

    def put(self, item: Item, *, more_bytes: int) -> bool:
        """Hand `item` to the writer; `False`: there is no room, and it is dropped.

        Args:
            item: what to write.
            more_bytes: the part of its bytes that is not held yet.
        """
        with self._changed:
            fits = self._held + more_bytes <= self._limit
            if fits:
                self._held += more_bytes
                self._items.append(item)
                self._put += 1
                # Each waking of the writer costs the agents a change of threads: not while it gathers.
                if len(self._items) in (1, self._enough):
                    self._changed.notify_all()
            else:
                self._held -= item.held_bytes - more_bytes
        if not fits:
            self.note_drop("no room", f"{self._limit} bytes wait to be written")
        return fits

    # -- the writer's side ---------------------------------------------------------------------

    def take(
        self, limit: int, limit_bytes: int, wait_seconds: float, gather_seconds: float
    ) -> list[Item]:
        """The oldest items, at least one if there is one within `wait_seconds`; they stay held.

        Waits `gather_seconds` for more, unless there are `limit` or somebody waits for them to be settled:
        one transaction of many rollouts costs less than many of one.
        """
        with self._changed:
            self._enough = limit
            if not self._items:
                self._changed.wait(wait_seconds)
            if self._items:
                self._changed.wait_for(
                    lambda: self._waited_for > 0 or len(self._items) >= limit, gather_seconds
                )
            taken: list[Item] = []
            size = 0
            while self._items and len(taken) < limit and (not taken or size < limit_bytes):
                taken.append(self._items.popleft())
                size += taken[-1].held_bytes
            return taken

    def settle(self, item: Item) -> None:
        """`item` is written or dropped: let go of its bytes."""
        with self._changed:
            self._held -= item.held_bytes
            self._settled += 1
            self._changed.notify_all()

    def wait_settled(self, timeout_seconds: float) -> bool:
        """Wait until all that was put before this call is settled; whether it is."""
        with self._changed:
            goal = self._put
            self._waited_for += 1
            self._changed.notify_all()
            try:
                return self._changed.wait_for(lambda: self._settled >= goal, timeout_seconds)
            finally:
                self._waited_for -= 1

    # -- what is lost --------------------------------------------------------------------------

    def note_drop(self, reason: str, detail: str) -> None:
        """Count a loss, and say so in the log: at once, then together once a minute."""
        now = time.monotonic()
        with self._changed:
            self._drops[reason] += 1
            count = self._drops[reason]
            last, said = self._said.get(reason, (float("-inf"), 0))
            if now - last < _SAY_AGAIN_SECONDS:
                return
            self._said[reason] = now, count
        _log.warning(
            "recording dropped %d rollout(s) or feedback (%s): %s", count - said, reason, detail
        )

    @property
    def drops(self) -> dict[str, int]:
        """Reason -> how many rollouts and pieces of feedback are lost for it."""
        with self._changed:
            return dict(self._drops)

    @property
    def waiting(self) -> int:
        """Items that are neither written nor dropped."""
        with self._changed:
            return self._put - self._settled
