"""The SQLite store agrees, move by move, with a model that fits on two pages."""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import Coroutine
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    multiple,
    rule,
)

from lightningrl.errors import Conflict, LightningError, NotFound, StaleAttempt
from lightningrl.schema import (
    AttemptId,
    AttemptState,
    Event,
    Failure,
    FailureKind,
    NewRollout,
    RetryPolicy,
    RewardEvent,
    RolloutId,
    RolloutState,
)
from lightningrl.store.base import RolloutQuery
from lightningrl.store.sqlite import SqliteStore
from lightningrl_testkit.records import call, group, log, reward

T = TypeVar("T")

START = datetime(2026, 1, 1, tzinfo=UTC)
RETRIES = [
    RetryPolicy(),
    RetryPolicy(max_attempts=1, max_infrastructure_failures=0),
    RetryPolicy(max_attempts=3, retry_agent_errors=True, max_infrastructure_failures=1),
]
ENDS = [
    (AttemptState.SUCCEEDED, None),
    (AttemptState.FAILED, FailureKind.AGENT),
    (AttemptState.FAILED, FailureKind.INFRASTRUCTURE),
    (AttemptState.TIMED_OUT, FailureKind.TIMEOUT),
    (AttemptState.LOST, FailureKind.LOST),
]


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
    rollout: ModelRollout
    worker: str
    lease: float
    deadline: float
    state: AttemptState = AttemptState.RUNNING
    failure: FailureKind | None = None
    events: list[Event] = field(default_factory=list)


@dataclass
class ModelRollout:
    spec: NewRollout
    state: RolloutState = RolloutState.QUEUED
    attempts: list[ModelAttempt] = field(default_factory=list)

    @property
    def reward(self) -> float | None:
        """The final reward of the latest attempt: highest revision, of equals the later."""
        events = self.attempts[-1].events if self.attempts else []
        rewards = [one for one in events if isinstance(one, RewardEvent) and one.name == "final"]
        best = max((one.revision for one in rewards), default=0)
        return next((one.value for one in reversed(rewards) if one.revision == best), None)

    @property
    def ended(self) -> bool:
        return self.state not in (RolloutState.QUEUED, RolloutState.RUNNING)


class Model:
    """What the store holds, by the words of its contract."""

    def __init__(self) -> None:
        self.rollouts: dict[RolloutId, ModelRollout] = {}
        self.attempts: dict[AttemptId, ModelAttempt] = {}
        self.takes: dict[int, list[tuple[str, list[RolloutId]]]] = {}

    def end(self, attempt: ModelAttempt, state: AttemptState, failure: FailureKind | None) -> None:
        attempt.state, attempt.failure = state, failure
        rollout = attempt.rollout
        failures = [one.failure for one in rollout.attempts if one.failure is not None]
        if failure is None:
            rollout.state = RolloutState.SUCCEEDED
        elif failure is FailureKind.CANCELLED:
            rollout.state = RolloutState.CANCELLED
        elif rollout.spec.retry.again(failure, failures):
            rollout.state = RolloutState.QUEUED
        else:
            rollout.state = RolloutState.FAILED

    def queued(self) -> list[ModelRollout]:
        return [one for one in self.rollouts.values() if one.state is RolloutState.QUEUED]

    def append(self, attempt: ModelAttempt, event: Event) -> type[LightningError] | None:
        if any(one.id == event.id for one in attempt.events):
            return None
        late = attempt.state is not AttemptState.RUNNING
        if late and event.__struct_config__.tag == "call":
            return StaleAttempt
        attempt.events.append(event)
        return None

    def take(self, iteration: int) -> type[LightningError] | None:
        groups: dict[str, list[ModelRollout]] = {}
        for one in self.rollouts.values():
            if one.spec.iteration == iteration:
                groups.setdefault(one.spec.group_id, []).append(one)
        if iteration in self.takes or not groups:
            return None
        if not all(one.ended for members in groups.values() for one in members):
            return Conflict
        self.takes[iteration] = []
        for ident, members in groups.items():
            usable = [
                one.spec.id
                for one in sorted(members, key=lambda one: one.spec.member)
                if one.state is RolloutState.SUCCEEDED and one.reward is not None
            ]
            self.takes[iteration].append((ident, usable if len(usable) >= 2 else []))
        return None


class StoreMachine(RuleBasedStateMachine):
    """Does the same to the store and to the model."""

    attempts = Bundle("attempts")

    @initialize()
    def open(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.loop = asyncio.new_event_loop()
        self.clock = ManualClock()
        self.path = Path(self.folder.name) / "store.db"
        self.store = SqliteStore.open(self.path, clock=self.clock)
        self.model = Model()

    def teardown(self) -> None:
        if not hasattr(self, "store"):
            return
        try:
            self.events_agree()
            self.ledgers_agree()
        finally:
            self.wait(self.store.close())
            self.loop.close()
            self.folder.cleanup()

    def wait(self, work: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(work)

    def same(self, work: Coroutine[Any, Any, T], error: type[LightningError] | None) -> T | None:
        """`work` raises just the error that the model expects."""
        if error is None:
            return self.wait(work)
        with pytest.raises(error):
            self.wait(work)
        return None

    @rule(
        task=st.integers(0, 2),
        iteration=st.integers(1, 2),
        size=st.integers(1, 3),
        retry=st.sampled_from(RETRIES),
        timeout=st.sampled_from([30.0, 60.0]),
    )
    def enqueue(
        self, task: int, iteration: int, size: int, retry: RetryPolicy, timeout: float
    ) -> None:
        specs = group(
            size, iteration=iteration, task=str(task), retry=retry, timeout_seconds=timeout
        )
        new = [one for one in specs if one.id not in self.model.rollouts]
        assert self.wait(self.store.enqueue(specs)) == len(new)
        self.model.rollouts.update({one.id: ModelRollout(one) for one in new})

    @rule(
        target=attempts,
        worker=st.sampled_from("ab"),
        limit=st.integers(1, 3),
        lease=st.sampled_from([10.0, 30.0]),
    )
    def claim(self, worker: str, limit: int, lease: float) -> Any:
        claims = self.wait(self.store.claim(worker, limit=limit, lease_seconds=lease))
        expected = self.model.queued()[:limit]
        assert [one.rollout.id for one in claims] == [one.spec.id for one in expected]
        now = self.clock.seconds
        for claim, rollout in zip(claims, expected, strict=True):
            deadline = now + rollout.spec.timeout_seconds
            attempt = ModelAttempt(rollout, worker, now + lease, deadline)
            rollout.attempts.append(attempt)
            rollout.state = RolloutState.RUNNING
            self.model.attempts[claim.attempt.id] = attempt
            assert claim.attempt.number == len(rollout.attempts)
        return multiple(*(claim.attempt.id for claim in claims))

    @rule(ident=attempts, worker=st.sampled_from("ab"))
    def heartbeat(self, ident: AttemptId, worker: str) -> None:
        attempt = self.model.attempts[ident]
        mine = attempt.state is AttemptState.RUNNING and attempt.worker == worker
        gone = self.wait(self.store.heartbeat(worker, [ident], lease_seconds=15.0))
        assert gone == ([] if mine else [ident])
        if mine:
            attempt.lease = max(attempt.lease, self.clock.seconds + 15.0)

    @rule(ident=attempts, turn=st.integers(0, 4))
    def append_call(self, ident: AttemptId, turn: int) -> None:
        request = b'{"messages":[%s]}' % (b'"a message of the conversation"' * (turn + 1))
        event = call(ident, f"call-{turn}", prompt=range(20 * (turn + 1)), request=request)
        self.append(event)

    @rule(ident=attempts, number=st.integers(0, 3), revision=st.integers(0, 1))
    def append_reward(self, ident: AttemptId, number: int, revision: int) -> None:
        self.append(reward(ident, number / 4, revision=revision, ident=f"reward-{number}"))
        self.append(log(ident, f"log-{number}"))

    def append(self, event: Event) -> None:
        expected = self.model.append(self.model.attempts[event.attempt_id], event)
        self.same(self.store.append([event]), expected)

    @rule(ident=attempts, end=st.sampled_from(ENDS))
    def finish(self, ident: AttemptId, end: tuple[AttemptState, FailureKind | None]) -> None:
        state, kind = end
        attempt = self.model.attempts[ident]
        running = attempt.state is AttemptState.RUNNING
        same_end = (attempt.state, attempt.failure) == end
        failure = None if kind is None else Failure(kind, "why")
        finishing = self.store.finish(ident, state, failure=failure)
        self.same(finishing, None if running or same_end else StaleAttempt)
        if running:
            self.model.end(attempt, state, kind)

    @rule(ident=attempts)
    def cancel(self, ident: AttemptId) -> None:
        rollout = self.model.attempts[ident].rollout
        cancelled = self.wait(self.store.cancel([rollout.spec.id]))
        assert cancelled == (not rollout.ended)
        if rollout.state is RolloutState.QUEUED:
            rollout.state = RolloutState.CANCELLED
        elif not rollout.ended:
            self.model.end(rollout.attempts[-1], AttemptState.FAILED, FailureKind.CANCELLED)

    @rule(ident=attempts)
    def extend(self, ident: AttemptId) -> None:
        self.wait(self.store.extend([ident], 25.0))
        self.model.attempts[ident].deadline += 25.0

    @rule(seconds=st.sampled_from([5.0, 20.0]))
    def time_passes(self, seconds: float) -> None:
        self.clock.seconds += seconds
        now = self.clock.seconds
        due = [
            one
            for one in self.model.attempts.values()
            if one.state is AttemptState.RUNNING and min(one.lease, one.deadline) <= now
        ]
        assert self.wait(self.store.expire()) == len(due)
        for one in due:
            if one.deadline <= one.lease:
                self.model.end(one, AttemptState.TIMED_OUT, FailureKind.TIMEOUT)
            else:
                self.model.end(one, AttemptState.LOST, FailureKind.LOST)

    @rule(iteration=st.integers(1, 2))
    def take(self, iteration: int) -> None:
        expected = self.model.take(iteration)
        taken = self.same(self.store.take("run", iteration), expected)
        if taken is not None:
            groups = [(one.group_id, [each.rollout.id for each in one.rollouts]) for one in taken]
            held = self.model.takes.get(iteration, [])
            assert groups == [(ident, members) for ident, members in held if members]

    @rule(iteration=st.integers(1, 2))
    def commit(self, iteration: int) -> None:
        expected = None if iteration in self.model.takes else NotFound
        self.same(self.store.commit("run", iteration), expected)

    @rule(after=st.integers(0, 1))
    def roll_back(self, after: int) -> None:
        later = sorted(one for one in self.model.takes if one > after)
        assert self.wait(self.store.roll_back("run", after=after)) == later
        for iteration in later:
            del self.model.takes[iteration]

    @rule()
    def restart(self) -> None:
        self.wait(self.store.close())
        self.store = SqliteStore.open(self.path, clock=self.clock)

    @invariant()
    def rollouts_agree(self) -> None:
        if not hasattr(self, "store"):
            return
        found = {one.id: one for one in self.wait(self.store.rollouts(RolloutQuery()))}
        expected = self.model.rollouts
        assert found.keys() == expected.keys()
        for ident, one in found.items():
            model = expected[ident]
            assert (one.state, one.attempts) == (model.state, len(model.attempts))
            assert one.reward == model.reward

    def events_agree(self) -> None:
        idents = list(self.model.attempts)
        expected = [self.model.attempts[ident].events for ident in idents]
        assert self.wait(self.store.events(idents)) == expected

    def ledgers_agree(self) -> None:
        expected = [
            (iteration, ident, tuple(members))
            for iteration, groups in sorted(self.model.takes.items())
            for ident, members in groups
        ]
        ledger = self.wait(self.store.ledger("run"))
        assert [(one.iteration, one.group_id, one.rollout_ids) for one in ledger] == expected


TestStoreModel = StoreMachine.TestCase
TestStoreModel.settings = settings(
    max_examples=int(os.environ.get("LIGHTNINGRL_EXAMPLES", "25")),
    stateful_step_count=50,
    deadline=None,
    # Shrinking replays thousands of stores, which takes minutes; fifty moves can be read as they are.
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
    suppress_health_check=[HealthCheck.too_slow],
)
