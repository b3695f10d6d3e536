"""What two processes do to one PostgreSQL store at once, interleaved by hand.

One of them is a transaction that a test holds open after its operation ran; the other is a store.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator
from typing import Any, TypeVar

import psycopg
import pytest
import pytest_asyncio

from lightningrl.errors import Conflict, NotFound
from lightningrl.schema import (
    AttemptState,
    Claim,
    Failure,
    FailureKind,
    Mode,
    RolloutId,
    RolloutState,
)
from lightningrl.store import deletion, event_log, ledger, lifecycle
from lightningrl.store.base import Retention, RolloutQuery
from lightningrl.store.postgres import PostgresStore
from lightningrl.store.postgres.session import BEGIN, PostgresSession, connect
from lightningrl.store.session import Session
from lightningrl_testkit.records import group, log, reward
from lightningrl_testkit.store_live import begin, iterations, live, serve

T = TypeVar("T")


class SlowProcess:
    """Runs operations of the store and is slow to commit them."""

    def __init__(self, url: str) -> None:
        self._session = PostgresSession("slow", connect(url, "slow"))
        self._onlooker: psycopg.Connection[tuple[object, ...]] = psycopg.connect(
            url, autocommit=True
        )

    def begin(self, operation: Callable[[Session], T]) -> T:
        self._session.begin(BEGIN)
        return operation(self._session)

    async def commit_beside(
        self, work: Coroutine[Any, Any, T], last: Callable[[Session], object] = lambda _: None
    ) -> T:
        """Begin `work`; when it waits for this process, or has ended without, do what is `last` and commit."""
        working = asyncio.ensure_future(work)
        while not (working.done() or self._is_waited_for()):  # noqa: ASYNC110  turns of the loop
            await asyncio.sleep(0)
        last(self._session)
        self._session.control("COMMIT")
        return await working

    def _is_waited_for(self) -> bool:
        waiting = "SELECT 1 FROM pg_stat_activity WHERE %s = ANY(pg_blocking_pids(pid))"
        pid = self._session.connection.info.backend_pid
        return self._onlooker.execute(waiting.encode(), [pid]).fetchone() is not None

    def close(self) -> None:
        self._session.connection.close()
        self._onlooker.close()


@pytest_asyncio.fixture
async def store(postgres_url: str) -> AsyncGenerator[PostgresStore]:
    store = PostgresStore.open(postgres_url)
    yield store
    await store.close()


@pytest.fixture
def slow(store: PostgresStore, postgres_url: str) -> Generator[SlowProcess]:
    slow = SlowProcess(postgres_url)
    yield slow
    slow.close()


async def succeeded(store: PostgresStore) -> Claim:
    """A rollout that succeeded with the reward 1."""
    await store.enqueue(group())
    (claim,) = await store.claim("worker")
    await store.append([reward(claim.attempt.id, 1.0, ident="final")])
    await store.finish(claim.attempt.id, AttemptState.SUCCEEDED)
    return claim


async def fail(store: PostgresStore, mode: Mode = Mode.TRAIN) -> RolloutId:
    """A rollout that failed."""
    await store.enqueue(group(mode=mode))
    (claim,) = await store.claim("worker")
    failure = Failure(FailureKind.AGENT, "no")
    await store.finish(claim.attempt.id, AttemptState.FAILED, failure=failure)
    return claim.rollout.id


class TestDeletion:
    async def test_what_is_just_being_given_is_not_retired(
        self, store: PostgresStore, slow: SlowProcess
    ) -> None:
        given, _ = await serve(store, "a"), await serve(store, "b")
        slow.begin(lambda session: ledger.give_live(session, "run", 1, [given]))
        retiring = store.retain(Retention(max_age_seconds=0.0))
        assert await slow.commit_beside(retiring) == 1
        assert await store.give_live("run", 1, []) == [given]
        assert [one.id for one in await store.rollouts(RolloutQuery())] == [given]

    async def test_a_rollout_goes_with_what_is_just_being_appended_to_it(
        self, store: PostgresStore, slow: SlowProcess
    ) -> None:
        for deleting in (store.retain, lambda _: store.delete_run("run")):
            claim = await begin(store, live("a"))
            await store.finish(claim.attempt.id, AttemptState.SUCCEEDED)
            late = [log(claim.attempt.id, "late")]
            slow.begin(lambda session, late=late: event_log.append(session, late))
            assert await slow.commit_beside(deleting(Retention(max_age_seconds=0.0))) == 1

    async def test_who_appends_to_what_is_just_being_deleted_finds_nothing(
        self, store: PostgresStore, slow: SlowProcess
    ) -> None:
        claim = await begin(store, live("a"))
        await store.finish(claim.attempt.id, AttemptState.SUCCEEDED)
        slow.begin(lambda session: deletion.delete_run(session, "run"))
        with pytest.raises(NotFound):
            await slow.commit_beside(store.append([log(claim.attempt.id, "late")]))

    async def test_what_is_just_being_tried_again_is_not_retired(
        self, store: PostgresStore, slow: SlowProcess
    ) -> None:
        failed = await fail(store, Mode.VAL)
        slow.begin(lambda session: lifecycle.retry(session, [failed]))
        assert await slow.commit_beside(store.retain(Retention(max_age_seconds=0.0))) == 0
        assert [one.id for one in await store.rollouts(RolloutQuery())] == [failed]


class TestTake:
    async def test_an_event_that_is_just_being_appended_counts_or_comes_later(
        self, store: PostgresStore, slow: SlowProcess
    ) -> None:
        ident = (await succeeded(store)).attempt.id
        step = reward(ident, 5.0, name="step", step="1", ident="step")
        slow.begin(lambda session: event_log.append(session, [step]))
        await store.append([log(ident, "line")])
        (taken,) = await slow.commit_beside(store.take("run", 1, min_group=1))
        (events,) = await store.events([ident])
        assert [one.id for one in events] == ["final", "step", "line"]
        assert taken.rollouts[0].events == 3

    async def test_a_rollout_that_is_just_being_tried_again_is_not_taken(
        self, store: PostgresStore, slow: SlowProcess
    ) -> None:
        failed = await fail(store)
        slow.begin(lambda session: lifecycle.retry(session, [failed]))
        with pytest.raises(Conflict, match="not complete"):
            await slow.commit_beside(store.take("run", 1, min_group=1, failure_reward=-1.0))
        (rollout,) = await store.rollouts(RolloutQuery())
        assert rollout.state is RolloutState.QUEUED
        assert await store.ledger("run") == []


class TestGiveLive:
    async def test_who_gives_what_another_is_just_giving_finds_it_given(
        self, store: PostgresStore, slow: SlowProcess
    ) -> None:
        given = await serve(store, "a")
        slow.begin(lambda session: ledger.give_live(session, "run", 1, [given]))
        assert await slow.commit_beside(store.give_live("run", 1, [given])) == [given]

    async def test_of_two_that_give_at_once_one_decides(
        self, store: PostgresStore, slow: SlowProcess
    ) -> None:
        first, second = await serve(store, "a"), await serve(store, "b")
        slow.begin(lambda session: ledger.give_live(session, "run", 1, [first]))
        assert await slow.commit_beside(store.give_live("run", 1, [second])) == [first]
        assert await iterations(store) == {first: 1, second: 0}

    async def test_what_is_just_being_given_is_taken(
        self, store: PostgresStore, slow: SlowProcess
    ) -> None:
        given = await serve(store, "a")
        slow.begin(lambda session: ledger.give_live(session, "run", 1, [given]))
        (taken,) = await slow.commit_beside(store.take("run", 1))
        assert [one.rollout.id for one in taken.rollouts] == [given]


class TestRewards:
    async def test_the_reward_of_a_rollout_is_that_of_the_event_with_the_later_place(
        self, store: PostgresStore, slow: SlowProcess
    ) -> None:
        claim = await succeeded(store)
        one, two = (reward(claim.attempt.id, value, ident=f"{value}") for value in (2.0, 3.0))
        slow.begin(lambda session: session.row("rollout_to_change", id=claim.rollout.id))
        await slow.commit_beside(
            store.append([one]), lambda session: event_log.append(session, [two])
        )
        ((*events,),) = await store.events([claim.attempt.id])
        (rollout,) = await store.rollouts(RolloutQuery())
        assert (events[-2:], rollout.reward) == ([two, one], one.value)
