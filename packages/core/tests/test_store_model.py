"""Each database agrees, move by move, with a model of it."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import tempfile
from collections.abc import Callable, Coroutine, Iterator
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
    precondition,
    rule,
)

from lightningrl.archive.records import Loader, Record, records_of
from lightningrl.errors import Conflict, LightningError, NotFound, StaleAttempt
from lightningrl.schema import (
    AttemptId,
    AttemptState,
    Claim,
    Event,
    Failure,
    FailureKind,
    Mode,
    RetryPolicy,
    RolloutState,
)
from lightningrl.store.base import Retention, RolloutDump, RolloutQuery, Store
from lightningrl.store.http import HttpStore
from lightningrl.store.postgres import PostgresStore
from lightningrl.store.sqlite import SqliteStore
from lightningrl_testkit.postgres import PostgresServer
from lightningrl_testkit.records import call, group, log, reward
from lightningrl_testkit.server import OneStoreAfterTheOther, ServerThread
from lightningrl_testkit.store_model import ManualClock, Model, ModelAttempt, ModelRollout

T = TypeVar("T")

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


def still_there(move: Callable[..., None]) -> Callable[..., None]:
    """Pass over a move whose attempt was deleted."""

    @functools.wraps(move)
    def moved(self: StoreMachine, ident: AttemptId, **others: Any) -> None:
        if ident in self.model.attempts:
            move(self, ident, **others)

    return moved


class StoreMachine(RuleBasedStateMachine):
    """Does the same to the store and to the model."""

    attempts = Bundle("attempts")
    live = Bundle("live")
    """Those of `attempts` that are of live rollouts."""

    def make(self) -> None:
        """Make an empty place for a store."""
        self.path = Path(self.closing.enter_context(tempfile.TemporaryDirectory())) / "store.db"

    def opened(self) -> Store:
        return SqliteStore.open(self.path, clock=self.clock)

    def close(self) -> None:
        self.wait(self.store.close())

    @initialize()
    def open(self) -> None:
        self.closing = contextlib.ExitStack()
        self.loop = asyncio.new_event_loop()
        self.clock = ManualClock()
        self.make()
        self.store = self.opened()
        self.model = Model()
        self.dumped: list[RolloutDump] = []

    def teardown(self) -> None:
        if not hasattr(self, "store"):
            return
        try:
            self.events_agree()
            self.ledgers_agree()
            versions = self.wait(self.store.resources("run", name="prompt"))
            assert [one.value for one in versions] == self.model.resources
        finally:
            self.close()
            self.loop.close()
            self.closing.close()

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
        names=st.sampled_from([(), ("final",), ("user",), ("final", "user")]),
        patience=st.sampled_from([None, 20.0]),
    )
    def enqueue(
        self,
        task: int,
        iteration: int,
        size: int,
        retry: RetryPolicy,
        timeout: float,
        names: tuple[str, ...],
        patience: float | None,
    ) -> None:
        specs = group(
            size,
            iteration=iteration,
            task=str(task),
            retry=retry,
            timeout_seconds=timeout,
            await_rewards=names,
            await_seconds=patience,
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
        self.started(claims, expected, worker, now, lease)
        return multiple(*(claim.attempt.id for claim in claims))

    def started(
        self,
        claims: list[Claim],
        expected: list[ModelRollout],
        worker: str,
        now: float,
        lease: float,
    ) -> None:
        for claim, rollout in zip(claims, expected, strict=True):
            deadline = now + rollout.spec.timeout_seconds
            attempt = ModelAttempt(rollout, worker, now + lease, deadline)
            rollout.attempts.append(attempt)
            rollout.state = RolloutState.RUNNING
            rollout.awaited = set(rollout.spec.await_rewards)
            self.model.attempts[claim.attempt.id] = attempt
            assert claim.attempt.number == len(rollout.attempts)

    @rule(
        targets=(attempts, live),
        name=st.integers(0, 5),
        names=st.sampled_from([(), ("final",), ("user",)]),
        lease=st.sampled_from([10.0, 30.0]),
        succeeds=st.booleans(),
    )
    def begin_live(self, name: int, names: tuple[str, ...], lease: float, succeeds: bool) -> Any:
        """As a process that serves people does; again under the same name it finds nothing to claim."""
        [spec] = group(mode=Mode.LIVE, task=f"live {name}", retry=RETRIES[1], await_rewards=names)
        new = spec.id not in self.model.rollouts
        if new and self.model.spent(ModelRollout(spec)) is not None:
            new = False
        elif new:
            self.model.rollouts[spec.id] = ModelRollout(spec)
        elif self.model.rollouts[spec.id].spec != spec:
            return multiple()
        assert self.wait(self.store.enqueue([spec])) == new
        claiming = self.store.claim("a", rollout_ids=[spec.id], lease_seconds=lease)
        claims = self.wait(claiming)
        expected = [self.model.rollouts[spec.id]] if new else []
        self.started(claims, expected, "a", self.clock.seconds, lease)
        idents = [claim.attempt.id for claim in claims]
        for ident in idents if succeeds else []:
            self.wait(self.store.finish(ident, AttemptState.SUCCEEDED))
            attempt, now = self.model.attempts[ident], self.clock.seconds
            self.model.end(attempt, AttemptState.SUCCEEDED, None, now)
        return multiple(*idents)

    @rule(ident=attempts | live, iteration=st.integers(1, 2))
    @still_there
    def give_live(self, ident: AttemptId, iteration: int) -> None:
        rollout = self.model.attempts[ident].rollout
        if not rollout.live:
            with contextlib.suppress(Conflict):  # unless the iteration has what it has
                given = self.wait(self.store.give_live("run", iteration, [rollout.spec.id]))
                assert given == self.model.given(iteration)
            return
        expected = self.model.give(iteration, rollout.spec.id)
        giving = self.store.give_live("run", iteration, [rollout.spec.id])
        given = self.same(giving, expected)
        if expected is None:
            assert given == self.model.given(iteration)

    @rule(ident=attempts, worker=st.sampled_from("ab"))
    @still_there
    def heartbeat(self, ident: AttemptId, worker: str) -> None:
        attempt = self.model.attempts[ident]
        mine = attempt.state is AttemptState.RUNNING and attempt.worker == worker
        gone = self.wait(self.store.heartbeat(worker, [ident], lease_seconds=15.0))
        assert gone == ([] if mine else [ident])
        if mine:
            attempt.lease = max(attempt.lease, self.clock.seconds + 15.0)

    @rule(ident=attempts, turn=st.integers(0, 4))
    @still_there
    def append_call(self, ident: AttemptId, turn: int) -> None:
        request = b'{"messages":[%s]}' % (b'"a message of the conversation"' * (turn + 1))
        event = call(ident, f"call-{turn}", prompt=range(20 * (turn + 1)), request=request)
        self.append(event)

    @rule(ident=attempts, number=st.integers(0, 3), revision=st.integers(0, 1))
    @still_there
    def append_reward(self, ident: AttemptId, number: int, revision: int) -> None:
        self.append(reward(ident, number / 4, revision=revision, ident=f"reward-{number}"))
        if number == 0:
            self.append(reward(ident, 1.0, name="user", ident=f"user-{revision}"))
        self.append(log(ident, f"log-{number}"))

    def append(self, event: Event) -> None:
        expected = self.model.append(self.model.attempts[event.attempt_id], event)
        self.same(self.store.append([event]), expected)

    @rule(ident=attempts, end=st.sampled_from(ENDS))
    @still_there
    def finish(self, ident: AttemptId, end: tuple[AttemptState, FailureKind | None]) -> None:
        state, kind = end
        attempt = self.model.attempts[ident]
        running = attempt.state is AttemptState.RUNNING
        same_end = (attempt.state, attempt.failure) == end
        failure = None if kind is None else Failure(kind, "why")
        finishing = self.store.finish(ident, state, failure=failure)
        self.same(finishing, None if running or same_end else StaleAttempt)
        if running:
            self.model.end(attempt, state, kind, self.clock.seconds)

    @rule(ident=attempts)
    @still_there
    def cancel(self, ident: AttemptId) -> None:
        rollout = self.model.attempts[ident].rollout
        cancelled = self.wait(self.store.cancel([rollout.spec.id]))
        assert cancelled == (not rollout.ended)
        if rollout.state is RolloutState.QUEUED:
            rollout.state = RolloutState.CANCELLED
            rollout.ended_at = self.clock.seconds
        elif not rollout.ended:
            running, now = rollout.attempts[-1], self.clock.seconds
            self.model.end(running, AttemptState.FAILED, FailureKind.CANCELLED, now)

    @rule(value=st.integers(0, 1))
    def put_resource(self, value: int) -> None:
        if self.model.resources[-1:] != [value]:
            self.model.resources.append(value)
        found = self.wait(self.store.put_resource("run", "prompt", value))
        assert (found.version, found.value) == (len(self.model.resources), value)

    @rule(ident=attempts)
    @still_there
    def retry(self, ident: AttemptId) -> None:
        rollout = self.model.attempts[ident].rollout
        failed = rollout.state is RolloutState.FAILED and not rollout.live
        # A take decides all groups of its iteration that were there.
        groups = dict(self.model.takes.get(rollout.iteration, []))
        held = failed and rollout.spec.group_id in groups
        retried = self.same(self.store.retry([rollout.spec.id]), Conflict if held else None)
        if not held:
            assert retried == failed
        if retried:
            rollout.state = RolloutState.QUEUED
            rollout.ended_at = None
            rollout.forgiven = len(rollout.attempts)

    @rule(ident=attempts)
    @still_there
    def wait_for_group(self, ident: AttemptId) -> None:
        group_id = self.model.attempts[ident].rollout.spec.group_id
        found = self.wait(self.store.wait(group_ids=[group_id]))
        members = [one for one in self.model.rollouts.values() if one.spec.group_id == group_id]
        complete = sorted(one.spec.member for one in members if one.complete)
        assert [one.spec.member for one in found] == complete

    @rule(ident=attempts | live)
    @still_there
    def delete(self, ident: AttemptId) -> None:
        rollout = self.model.attempts[ident].rollout
        held = self.model.held(rollout)
        deleting = self.store.delete_rollouts([rollout.spec.id])
        deleted = self.same(deleting, Conflict if held else None)
        if deleted is not None:
            assert deleted == 1
            self.model.forget(rollout)

    @rule(ident=attempts)
    @still_there
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
                self.model.end(one, AttemptState.TIMED_OUT, FailureKind.TIMEOUT, now)
            else:
                self.model.end(one, AttemptState.LOST, FailureKind.LOST, now)
        self.model.stop_awaiting(now)

    @rule(age=st.sampled_from([0.0, 30.0]))
    def retain(self, age: float) -> None:
        old = [
            one
            for one in self.model.rollouts.values()
            if one.complete
            and one.ended_at is not None
            and one.ended_at + age <= self.clock.seconds
            and (one.iteration in self.model.committed or (one.live and not one.given))
        ]
        assert self.wait(self.store.retain(Retention(max_age_seconds=age))) == len(old)
        for one in old:
            self.model.forget(one)

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
        if expected is None:
            self.model.committed.add(iteration)

    @rule(after=st.integers(0, 1))
    def roll_back(self, after: int) -> None:
        later = sorted(one for one in self.model.takes if one > after)
        assert self.wait(self.store.roll_back("run", after=after)) == later
        for iteration in later:
            del self.model.takes[iteration]
            self.model.committed.discard(iteration)

    @rule()
    def restart(self) -> None:
        self.close()
        self.store = self.opened()

    @rule()
    def move(self) -> None:
        """To an empty store, through what a run's file has."""
        loaded = self.wait(self.loaded())
        self.close()
        self.make()
        self.store = self.opened()
        self.wait(self.load(loaded))

    @rule()
    def dump(self) -> None:
        """Keep what the store holds now."""
        self.kept = self.model.dumped()
        self.dumped = self.wait(self.store.dump("run", limit=1000))
        self.ended = [one.rollout.id for one in self.wait(self.store.ended("run"))]

    @rule(target=attempts, name=st.integers(0, 5), iteration=st.integers(1, 2))
    def train_live(self, name: int, iteration: int) -> Any:
        """All that becomes of a live rollout; random moves would hardly ever come in this order."""
        before = len(self.model.attempts)
        self.begin_live(name, (), 30.0, succeeds=False)
        if len(self.model.attempts) == before:  # its name was used
            return multiple()
        mine = next(reversed(self.model.attempts))
        self.append_reward(mine, number=1, revision=0)
        self.finish(mine, end=ENDS[0])
        self.dump()
        self.give_live(mine, iteration=iteration)
        self.take(iteration)
        if iteration in self.model.takes:
            self.commit(iteration)
        self.delete(mine)
        return mine

    @precondition(lambda self: self.dumped)
    @rule()
    def load_again(self) -> None:
        """What was kept, into the store that went on: it changes nothing and brings back what was deleted."""
        there = self.model.rollouts
        # Under some ids something else was enqueued since.
        kept = {
            ident: one
            for ident, one in self.kept.items()
            if there.get(ident, one.origin) is one.origin
        }
        back = [ident for ident in kept if ident not in there and self.model.load(kept[ident])]
        dumped = [one for one in self.dumped if one.rollout.id in kept]
        assert self.wait(self.store.load(rollouts=dumped)) == len(back)
        ended = [ident for ident in self.ended if ident in kept]
        complete = sum(there[ident].complete for ident in back)
        assert self.wait(self.store.load(completed=ended)) == complete

    async def loaded(self) -> list[Record]:
        return [record async for record in records_of(self.store, "run")]

    async def load(self, records: list[Record]) -> None:
        for _ in range(2):  # the second time all of it is there
            loader = Loader(self.store)
            for record in records:
                await loader.add(record)
            new = await loader.end()
        assert new == 0

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
            assert (one.reward, one.complete) == (model.reward, model.complete)
            assert one.spec.iteration == model.iteration

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


class HttpMachine(StoreMachine):
    app: OneStoreAfterTheOther
    server: ServerThread

    def opened(self) -> Store:
        self.served = self.wait(self.server.there(self.app.open(self.path, self.clock)))
        return HttpStore.connect(self.server.url)

    def close(self) -> None:
        super().close()
        self.wait(self.server.there(self.served.close()))


class PostgresMachine(StoreMachine):
    server: PostgresServer

    def make(self) -> None:
        self.url = self.closing.enter_context(self.server.schema())

    def opened(self) -> Store:
        return PostgresStore.open(self.url, clock=self.clock)


@pytest.fixture(scope="module", autouse=True)
def _servers(postgres: PostgresServer) -> Iterator[None]:
    PostgresMachine.server = postgres
    HttpMachine.app = OneStoreAfterTheOther()
    with ServerThread(HttpMachine.app) as HttpMachine.server:
        yield


TestSqliteModel = StoreMachine.TestCase
TestPostgresModel = PostgresMachine.TestCase
TestHttpModel = HttpMachine.TestCase
TestSqliteModel.settings = settings(
    max_examples=int(os.environ.get("LIGHTNINGRL_EXAMPLES", "8")),
    stateful_step_count=50,
    deadline=None,
    # Shrinking replays thousands of stores, which takes minutes; fifty moves can be read as they are.
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
    suppress_health_check=[HealthCheck.too_slow],
)
# A move costs more there, and the statements of the one, and the server of the other, have the contract's claims too.
TestPostgresModel.settings = TestHttpModel.settings = settings(
    TestSqliteModel.settings, max_examples=int(os.environ.get("LIGHTNINGRL_EXAMPLES", "4"))
)
