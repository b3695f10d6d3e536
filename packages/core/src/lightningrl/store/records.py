"""What is asked of the store, and what it answers: the records of its contract.

Invariant: a query and the last answer that it gave make the query for the next page, so that nothing is
answered twice, whatever is enqueued meanwhile, and nothing passed over that was there when the first page was
read. On PostgreSQL a process that is slow to commit what it enqueues may have places before what is read
already: a reader that must miss nothing reads again from the start, or reads ends (`Store.ended`), whose
places are given at the commit.
"""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Any

import msgspec

from lightningrl.schema import (
    Attempt,
    AttemptId,
    Event,
    FailureKind,
    GroupId,
    Mode,
    Rollout,
    RolloutId,
    RolloutState,
)
from lightningrl.store.rows import micros


class RolloutOrder(StrEnum):
    """What rollouts are sorted by; ties by id. Those that lack the value come last either way."""

    CREATED = "created"
    ENDED = "ended"
    REWARD = "reward"
    ATTEMPTS = "attempts"


class RolloutPlace(msgspec.Struct, frozen=True):
    """Where in an order a rollout stood when it was read."""

    key: int | float | None
    """What it is sorted by; instants in microseconds since 1970. `None`: it lacked the value."""
    id: RolloutId


class RolloutQuery(msgspec.Struct, frozen=True, kw_only=True):
    """Which rollouts to read. Every field narrows; an empty query means all."""

    run: str | None = None
    mode: Mode | None = None
    iteration: int | None = None
    variant: str | None = None
    states: tuple[RolloutState, ...] = ()
    group_id: GroupId | None = None
    task_id: str | None = None
    ids: tuple[RolloutId, ...] = ()
    failure_kinds: tuple[FailureKind, ...] = ()
    """Those whose latest attempt ended by one of these."""
    min_reward: float | None = None
    """Those with a final reward of at least this."""
    max_reward: float | None = None
    """Those with a final reward of at most this."""
    order: RolloutOrder = RolloutOrder.CREATED
    descending: bool = False
    after: RolloutPlace | None = None
    """Only what comes after this place in the order: see `following`."""
    limit: int | None = None

    def following(self, last: Rollout) -> RolloutQuery:
        """The query for the page after the one that ended with `last`."""
        keys: dict[RolloutOrder, int | float | None] = {
            RolloutOrder.CREATED: micros(last.created_at),
            RolloutOrder.ENDED: None if last.ended_at is None else micros(last.ended_at),
            RolloutOrder.REWARD: last.reward,
            RolloutOrder.ATTEMPTS: last.attempts,
        }
        return msgspec.structs.replace(self, after=RolloutPlace(keys[self.order], last.id))


class GroupQuery(msgspec.Struct, frozen=True, kw_only=True):
    """Which groups or tasks of a run to read, in the order in which they were enqueued first."""

    run: str
    mode: Mode | None = None
    iteration: int | None = None
    task_id: str | None = None
    complete: bool | None = None
    """Only those all of whose rollouts are complete, or only the others."""
    after: int = 0
    """The cursor of the last one that was read."""
    limit: int = 1000


class GroupSummary(msgspec.Struct, frozen=True):
    """How far one group is."""

    cursor: int
    """Pass the last one seen to `groups` to read on."""
    group_id: GroupId
    mode: Mode
    iteration: int
    variant: str
    task_id: str
    members: int
    ended: int
    """Members in a terminal state."""
    succeeded: int
    complete: int
    """Members that have ended, with the rewards that they await: the group is when all are."""
    rewarded: int
    """Succeeded members with a final reward."""
    mean_reward: float | None
    """Of those. `None`: there are none."""

    @property
    def is_complete(self) -> bool:
        """Whether it can be taken."""
        return self.complete == self.members


class TaskSummary(msgspec.Struct, frozen=True):
    """How the rollouts of one task do, over all iterations that a query names."""

    cursor: int
    """Pass the last one seen to `tasks` to read on."""
    task_id: str
    task: dict[str, Any]
    """The input row, as it was enqueued first."""
    groups: int
    rollouts: int
    ended: int
    """Rollouts in a terminal state."""
    succeeded: int
    complete: int
    rewarded: int
    """Succeeded rollouts with a final reward."""
    mean_reward: float | None
    """Of those. `None`: there are none."""


class Retention(msgspec.Struct, frozen=True, kw_only=True):
    """What may leave the store: complete rollouts, the oldest first; of training only committed ones."""

    modes: tuple[Mode, ...] = tuple(Mode)
    max_age_seconds: float | None = None
    """Those that ended longer ago are deleted. `None`: none for its age."""
    max_bytes: int | None = None
    """While the store holds more, the oldest are deleted. `None`: none for its size."""


class Spread(msgspec.Struct, frozen=True):
    """A sample in five numbers; nearest ranks."""

    count: int
    mean: float
    least: float
    median: float
    p90: float
    most: float


class RunStatistics(msgspec.Struct, frozen=True):
    """What a run's rollouts did, over all iterations."""

    rollouts: dict[str, int]
    """State -> number of rollouts."""
    attempts: dict[str, int]
    """State -> number of attempts."""
    failures: dict[str, int]
    """Kind of failure -> number of attempts."""
    events: dict[str, int]
    """Kind -> number of events."""
    prompt_tokens: int
    completion_tokens: int
    attempt_seconds: Spread | None
    """How long the attempts that succeeded took. `None`: none did."""
    queue_seconds: Spread | None
    """How long rollouts waited for their first attempt. `None`: none was started."""
    reward: Spread | None
    """Of the succeeded rollouts with a final reward. `None`: there are none."""
    ended_per_second: float | None
    """Rollouts in a terminal state by the time from the first start to the last end. `None`: no time
    passed."""
    ended_lately: int
    """Rollouts that ended within the `window_seconds` that were asked for."""


class Ended(msgspec.Struct, frozen=True):
    """One complete rollout, with its place in the order of completion."""

    cursor: int
    """Pass the last one seen to `ended` to read on."""
    rollout: Rollout


class AttemptDump(msgspec.Struct, frozen=True):
    """An attempt with everything that another store needs to hold it."""

    attempt: Attempt
    deadline_at: datetime
    """When its time runs out, extensions included."""
    events: tuple[Event, ...]
    """In order of arrival."""


class RolloutDump(msgspec.Struct, frozen=True):
    """A rollout with everything that another store needs to hold it."""

    cursor: int
    """Pass the last one seen to `dump` to read on."""
    rollout: Rollout
    attempts: tuple[AttemptDump, ...]
    """In order of their numbers."""


class LedgerMember(msgspec.Struct, frozen=True):
    """One rollout that an iteration trains on."""

    rollout_id: RolloutId
    attempt_id: AttemptId
    reward: float
    """The final reward when it was taken; a later revision is stored and doesn't count."""
    events: int
    """How many events the attempt had when it was taken; later ones, rewards too, don't count."""


class LedgerEntry(msgspec.Struct, frozen=True):
    """What the ledger says of one group."""

    run: str
    iteration: int
    group_id: GroupId
    status: str
    """`taken` or `skipped`."""
    members: tuple[LedgerMember, ...]
    """What the iteration trains on, in member order; empty when skipped."""
    committed: bool

    @property
    def rollout_ids(self) -> tuple[RolloutId, ...]:
        """The rollouts that the iteration trains on."""
        return tuple(one.rollout_id for one in self.members)


class RunSummary(msgspec.Struct, frozen=True):
    """Counts for one run; `RunStatistics` has more."""

    run: str
    rollouts: dict[str, int]
    """State -> number of rollouts."""
    attempts: dict[str, int]
    """State -> number of attempts."""
    events: dict[str, int]
    """Kind -> number of events."""
