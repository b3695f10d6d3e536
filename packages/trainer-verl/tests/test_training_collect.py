"""Collecting: what is waited for, and what a second start does with what failed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from lightningrl.errors import RunError
from lightningrl.recipe import parse_recipe
from lightningrl.schema import AttemptState, Failure, FailureKind, Progress, RetryPolicy
from lightningrl.store.sqlite import SqliteStore
from lightningrl_testkit.records import group, reward
from lightningrl_verl.training.batches import Task
from lightningrl_verl.training.collect import collect, collect_training

FAILED = Failure(FailureKind.AGENT, "ValueError: the tool is missing")


@pytest_asyncio.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqliteStore]:
    store = SqliteStore.open(tmp_path / "store.db")
    yield store
    await store.close()


async def ends(store: SqliteStore, failures: list[Failure | None]) -> None:
    """Lease a rollout for each of `failures`, and end it so."""
    for failure in failures:
        (claim,) = await store.claim("worker", wait_seconds=60.0)
        state = AttemptState.SUCCEEDED if failure is None else AttemptState.FAILED
        await store.finish(claim.attempt.id, state, failure=failure)


TASKS: list[Task] = [("easy", {}), ("hard", {})]


async def plays(store: SqliteStore, outcomes: dict[str, list[float | None]]) -> None:
    """End the rollouts of both tasks, in whatever order they come: with a reward, or by the agent's fault."""
    for _ in range(4):
        (claim,) = await store.claim("worker", wait_seconds=60.0)
        value = outcomes[claim.rollout.spec.task_id].pop()
        if value is None:
            await store.finish(claim.attempt.id, AttemptState.FAILED, failure=FAILED)
        else:
            await store.append([reward(claim.attempt.id, value)])
            await store.finish(claim.attempt.id, AttemptState.SUCCEEDED)


@pytest.mark.parametrize(
    ("failure_reward", "flat"),
    [(None, [[1.0], [1.0, 1.0]]), (0.0, [[1.0, 1.0]]), (1.0, [[1.0, 1.0]] * 2)],
)
async def test_a_group_that_failed_in_part_has_signal_if_failures_are_rewarded(
    store: SqliteStore, failure_reward: float | None, flat: list[list[float]]
) -> None:
    algorithm = {
        "iterations": 1,
        "tasks_per_iteration": 2,
        "group_size": 2,
        "further_tasks": 1,
        "failure_reward": failure_reward,
    }
    recipe = parse_recipe({"name": "run", "agent": "a:b", "algorithm": algorithm})
    # Two rewards of 1; and one of 1 beside a failure. Both tasks are in use, so none can be added.
    working = asyncio.create_task(plays(store, {"easy": [1.0, 1.0], "hard": [None, 1.0]}))
    found = await collect_training(store, recipe, TASKS, 1, on_progress=lambda _: None)
    await working
    assert (sorted(map(list, found.flat.values())), found.further) == (flat, 0)


async def collected(
    store: SqliteStore, failures: list[Failure | None], *, failures_count: bool = False
) -> Progress:
    """Collect a group of two while a worker ends attempts as `failures` say."""
    working = asyncio.create_task(ends(store, failures))
    try:
        return await collect(
            store, group(2), on_progress=lambda _: None, failures_count=failures_count
        )
    finally:
        await working


async def test_when_all_failed_it_stops_and_says_why(store: SqliteStore) -> None:
    with pytest.raises(RunError, match="2 x agent: ValueError: the tool is missing"):
        await collected(store, [FAILED, FAILED])


async def test_a_second_start_tries_again_what_the_first_stopped_on(store: SqliteStore) -> None:
    with pytest.raises(RunError):
        await collected(store, [FAILED, FAILED])
    assert (await collected(store, [None, FAILED])).succeeded == 1


async def test_a_second_start_keeps_failures_that_stopped_nothing(store: SqliteStore) -> None:
    first = await collected(store, [None, FAILED])
    assert (first.succeeded, first.failed) == (1, 1)
    assert await collected(store, []) == first


async def test_failures_that_have_a_reward_are_an_outcome_like_others(store: SqliteStore) -> None:
    first = await collected(store, [FAILED, FAILED], failures_count=True)
    assert (first.succeeded, first.failed) == (0, 2)
    assert (
        await collected(store, [], failures_count=True) == first
    )  # nor does a second start try again


async def test_failed_infrastructure_is_no_outcome(store: SqliteStore) -> None:
    away = Failure(FailureKind.INFRASTRUCTURE, "the engine is away")
    tries: list[Failure | None] = [away] * 2 * (RetryPolicy().max_infrastructure_failures + 1)
    with pytest.raises(RunError, match="x infrastructure: the engine is away"):
        await collected(store, tries, failures_count=True)


async def test_rollouts_that_are_deleted_while_they_are_waited_for_are_missed(
    store: SqliteStore,
) -> None:
    collecting = asyncio.create_task(collect(store, group(2), on_progress=lambda _: None))
    await ends(store, [None])
    await store.delete_rollouts([group(2)[0].id])
    await ends(store, [None])
    with pytest.raises(RunError, match="1 train rollouts of iteration 1 were deleted"):
        await collecting
