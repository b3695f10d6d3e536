"""Claims about what an operator does: queue failed rollouts again."""
# ruff: noqa: D102  the name of a test is its claim

from __future__ import annotations

import asyncio

import pytest

from lightningrl.errors import Conflict, NotFound
from lightningrl.schema import (
    AttemptState,
    Claim,
    Failure,
    FailureKind,
    Mode,
    NewRollout,
    RetryPolicy,
    Rollout,
    RolloutId,
    RolloutState,
)
from lightningrl.store.base import RolloutQuery, Store
from lightningrl_testkit.records import group, reward

AGENT_FAILED = Failure(FailureKind.AGENT, "ValueError: no")
TIMED_OUT = Failure(FailureKind.TIMEOUT, "too long")


async def fail_one(store: Store, failure: Failure = AGENT_FAILED) -> Claim:
    """Claim the oldest rollout and fail it."""
    (claim,) = await store.claim("worker")
    await store.finish(claim.attempt.id, AttemptState.FAILED, failure=failure)
    return claim


async def failed(store: Store, rollouts: list[NewRollout]) -> list[RolloutId]:
    """Enqueue and fail all `rollouts`."""
    await store.enqueue(rollouts)
    for _ in rollouts:
        await fail_one(store)
    return [one.id for one in rollouts]


async def the_only(store: Store) -> Rollout:
    """The store's one rollout."""
    (found,) = await store.rollouts(RolloutQuery())
    return found


class OperatorClaims:
    """Retry."""

    async def test_a_failed_rollout_is_queued_again_and_claimed_anew(self, store: Store) -> None:
        ids = await failed(store, group())
        assert await store.retry(ids) == 1
        found = await the_only(store)
        assert (found.state, found.attempts, found.ended_at) == (RolloutState.QUEUED, 1, None)
        (claim,) = await store.claim("worker")
        assert claim.attempt.number == 2
        await store.finish(claim.attempt.id, AttemptState.SUCCEEDED)
        assert (await the_only(store)).state is RolloutState.SUCCEEDED

    async def test_only_failed_ones_are_queued_again(self, store: Store) -> None:
        await store.enqueue(group(4))
        succeeded, running, cancelled = await store.claim("worker", limit=3)
        await store.finish(succeeded.attempt.id, AttemptState.SUCCEEDED)
        await store.cancel([cancelled.rollout.id])
        assert await store.retry([one.id for one in group(4)]) == 0
        assert await store.heartbeat("worker", [running.attempt.id]) == []

    async def test_retrying_again_changes_nothing(self, store: Store) -> None:
        ids = await failed(store, group())
        assert [await store.retry(ids), await store.retry(ids)] == [1, 0]

    async def test_an_unknown_rollout_keeps_all_from_being_queued_again(self, store: Store) -> None:
        ids = await failed(store, group())
        with pytest.raises(NotFound, match="nobody"):
            await store.retry([*ids, RolloutId("nobody")])
        assert (await the_only(store)).state is RolloutState.FAILED

    async def test_a_retried_rollout_has_all_its_tries_again(self, store: Store) -> None:
        await store.enqueue(group(retry=RetryPolicy(max_attempts=2)))
        states: list[RolloutState] = []
        for _ in range(2):  # two timeouts use the policy up, before the retry and after it
            for _ in range(2):
                await fail_one(store, TIMED_OUT)
                states.append((await the_only(store)).state)
            await store.retry([(await the_only(store)).id])
        assert states == [RolloutState.QUEUED, RolloutState.FAILED] * 2
        assert (await the_only(store)).forgiven == 4

    async def test_what_a_take_has_is_not_tried_again(self, store: Store) -> None:
        ids = await failed(store, group(1))
        await store.enqueue(group(3)[1:])
        for claim in await store.claim("worker", limit=2):
            await store.append([reward(claim.attempt.id, 1.0)])
            await store.finish(claim.attempt.id, AttemptState.SUCCEEDED)
        await store.take("run", 1)
        with pytest.raises(Conflict, match="iteration 1"):
            await store.retry(ids)
        await store.roll_back("run", after=0)
        assert await store.retry(ids) == 1

    async def test_a_take_has_no_validation_rollouts(self, store: Store) -> None:
        await failed(store, group(2))
        ids = await failed(store, group(2, mode=Mode.VAL))
        await store.take("run", 1)
        assert await store.retry(ids) == 2

    async def test_a_waiting_claim_gets_what_is_retried(self, store: Store) -> None:
        ids = await failed(store, group())
        waiting = asyncio.ensure_future(store.claim("other", wait_seconds=60.0))
        while len(await store.workers()) < 2:  # until the claim has looked once
            continue
        await store.retry(ids)
        assert len(await waiting) == 1

    async def test_a_reader_of_ends_sees_the_second_end_too(self, store: Store) -> None:
        ids = await failed(store, group())
        (first,) = await store.ended("run")
        await store.retry(ids)
        assert await store.ended("run") == []
        await fail_one(store)
        (second,) = await store.ended("run", after=first.cursor)
        assert second.rollout.id == ids[0]
