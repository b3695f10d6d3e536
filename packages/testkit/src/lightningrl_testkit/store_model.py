"""What a store holds, by the words of its contract and on two pages, to compare one with."""
# ruff: noqa: D102  the names are those of `Store`

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from lightningrl.errors import Conflict, LightningError, StaleAttempt
from lightningrl.schema import (
    AttemptId,
    AttemptState,
    Event,
    FailureKind,
    Mode,
    NewRollout,
    RewardEvent,
    RolloutId,
    RolloutState,
)

START = datetime(2026, 1, 1, tzinfo=UTC)


class ManualClock:
    """Stands still unless told."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def now(self) -> datetime:
        return START + timedelta(seconds=self.seconds)

    def monotonic(self) -> float:
        return self.seconds


@dataclass
class ModelAttempt:
    """An attempt; times in seconds of the clock."""

    rollout: ModelRollout
    worker: str
    lease: float
    deadline: float
    state: AttemptState = AttemptState.RUNNING
    failure: FailureKind | None = None
    events: list[Event] = field(default_factory=list)


@dataclass
class ModelRollout:
    """A rollout and what became of it."""

    spec: NewRollout
    state: RolloutState = RolloutState.QUEUED
    attempts: list[ModelAttempt] = field(default_factory=list)
    forgiven: int = 0
    ended_at: float | None = None
    awaited: set[str] = field(default_factory=set[str])
    """Of the latest attempt, if that runs or succeeded."""
    given: int = 0
    """The iteration that a live rollout was given to; 0: none."""

    @property
    def live(self) -> bool:
        return self.spec.mode is Mode.LIVE

    @property
    def iteration(self) -> int:
        return self.given if self.live else self.spec.iteration

    @property
    def reward(self) -> float | None:
        """The final reward of the latest attempt: highest revision, of equals the later. Failures have none."""
        if self.state not in (RolloutState.RUNNING, RolloutState.SUCCEEDED):
            return None
        events = self.attempts[-1].events if self.attempts else []
        rewards = [one for one in events if isinstance(one, RewardEvent) and one.name == "final"]
        best = max((one.revision for one in rewards), default=0)
        return next((one.value for one in reversed(rewards) if one.revision == best), None)

    @property
    def ended(self) -> bool:
        return self.state not in (RolloutState.QUEUED, RolloutState.RUNNING)

    @property
    def complete(self) -> bool:
        return self.ended and not self.awaited


@dataclass
class ModelDump:
    """What a dump holds of one rollout."""

    origin: ModelRollout
    """The rollout that was dumped, which goes on."""
    rollout: ModelRollout
    """As it was."""
    attempts: dict[AttemptId, ModelAttempt]


class Model:
    """All rollouts, and the ledger of one run."""

    def __init__(self) -> None:
        self.rollouts: dict[RolloutId, ModelRollout] = {}
        self.attempts: dict[AttemptId, ModelAttempt] = {}
        self.takes: dict[int, list[tuple[str, list[RolloutId]]]] = {}
        self.committed: set[int] = set()
        self.resources: list[int] = []
        """The values of the one resource, oldest first."""

    def end(
        self, attempt: ModelAttempt, state: AttemptState, failure: FailureKind | None, now: float
    ) -> None:
        attempt.state, attempt.failure = state, failure
        rollout = attempt.rollout
        rollout.ended_at = now
        counted = rollout.attempts[rollout.forgiven :]
        failures = [one.failure for one in counted if one.failure is not None]
        if failure is None:
            rollout.state = RolloutState.SUCCEEDED
            return
        rollout.awaited = set()
        if failure is FailureKind.CANCELLED:
            rollout.state = RolloutState.CANCELLED
        elif rollout.spec.retry.again(failure, failures):
            rollout.state = RolloutState.QUEUED
            rollout.ended_at = None
        else:
            rollout.state = RolloutState.FAILED

    def stop_awaiting(self, now: float) -> None:
        """Rollouts that awaited rewards for as long as they may are complete."""
        for one in self.rollouts.values():
            seconds = one.spec.await_seconds
            if one.ended_at is not None and seconds is not None and one.ended_at + seconds <= now:
                one.awaited = set()

    def held(self, rollout: ModelRollout) -> bool:
        """Whether it may not be deleted."""
        if rollout.iteration in self.committed:
            return rollout.state is RolloutState.RUNNING
        groups = dict(self.takes.get(rollout.iteration, []))
        taken = rollout.spec.group_id in groups
        return rollout.state is RolloutState.RUNNING or taken or bool(rollout.given)

    def forget(self, rollout: ModelRollout) -> None:
        """All that was of a rollout is gone, its place in the ledger too."""
        del self.rollouts[rollout.spec.id]
        self.attempts = {
            key: one for key, one in self.attempts.items() if one.rollout is not rollout
        }
        for groups in self.takes.values():
            for _, members in groups:
                if rollout.spec.id in members:
                    members.remove(rollout.spec.id)

    def dumped(self) -> dict[RolloutId, ModelDump]:
        """All rollouts as they are now."""
        dumps: dict[RolloutId, ModelDump] = {}
        for ident, origin in self.rollouts.items():
            its = {key: one for key, one in self.attempts.items() if one.rollout is origin}
            dumps[ident] = ModelDump(origin, *copy.deepcopy((origin, its)))
        return dumps

    def load(self, dumped: ModelDump) -> bool:
        """Whether what was dumped, and was deleted since, comes back."""
        rollout = dumped.rollout
        spent = self.spent(rollout)
        if spent is not None:
            if not rollout.complete:
                return False
            rollout.given = spent
        dumped.origin = rollout
        dumped.rollout, attempts = copy.deepcopy((rollout, dumped.attempts))
        self.rollouts[rollout.spec.id] = rollout
        self.attempts |= dumped.attempts
        dumped.attempts = attempts
        return True

    def spent(self, rollout: ModelRollout) -> int | None:
        """The iteration that took a live rollout, deleted since or not."""
        group_id = rollout.spec.group_id
        taken = (each for each, groups in self.takes.items() if group_id in dict(groups))
        return next(taken, None) if rollout.live else None

    def queued(self) -> list[ModelRollout]:
        """What a runner may be handed."""
        queued = (one for one in self.rollouts.values() if one.state is RolloutState.QUEUED)
        return [one for one in queued if not one.live]

    def given(self, iteration: int) -> list[RolloutId]:
        """The live rollouts of an iteration."""
        live = (one for one in self.rollouts.values() if one.live)
        return [one.spec.id for one in live if one.given == iteration]

    def give(self, iteration: int, ident: RolloutId) -> type[LightningError] | None:
        if iteration in self.takes or self.given(iteration):
            return None
        one = self.rollouts[ident]
        if one.given or not one.complete:
            return Conflict
        one.given = iteration
        return None

    def append(self, attempt: ModelAttempt, event: Event) -> type[LightningError] | None:
        if any(one.id == event.id for one in attempt.events):
            return None
        late = attempt.state is not AttemptState.RUNNING
        if late and event.__struct_config__.tag == "call":
            return StaleAttempt
        attempt.events.append(event)
        if isinstance(event, RewardEvent) and attempt is attempt.rollout.attempts[-1]:
            attempt.rollout.awaited.discard(event.name)
        return None

    def take(self, iteration: int) -> type[LightningError] | None:
        groups: dict[str, list[ModelRollout]] = {}
        for one in self.rollouts.values():
            if one.iteration == iteration:
                groups.setdefault(one.spec.group_id, []).append(one)
        if iteration in self.takes or not groups:
            return None
        if not all(one.complete for members in groups.values() for one in members):
            return Conflict
        self.takes[iteration] = []
        for ident, members in groups.items():
            usable = [
                one.spec.id
                for one in sorted(members, key=lambda one: one.spec.member)
                if one.state is RolloutState.SUCCEEDED and one.reward is not None
            ]
            least = 1 if members[0].live else 2
            self.takes[iteration].append((ident, usable if len(usable) >= least else []))
        return None
