"""Claims about rewards that a rollout awaits, and about those that come too late to be trained."""
# ruff: noqa: D102  the name of a test is its claim

from __future__ import annotations

import asyncio

import pytest

from lightningrl.errors import Conflict
from lightningrl.schema import (
    AttemptState,
    Claim,
    Failure,
    FailureKind,
    Mode,
    RolloutState,
)
from lightningrl.store.base import RolloutQuery, Store
from lightningrl_testkit.records import group, log, reward

LOST = Failure(FailureKind.LOST, "gone")


async def succeeded(store: Store, *await_rewards: str) -> Claim:
    """The attempt of a rollout that succeeded with the final reward 1, and awaits rewards."""
    await store.enqueue(group(await_rewards=await_rewards))
    (claim,) = await store.claim("worker")
    await store.append([reward(claim.attempt.id, 1.0)])
    await store.finish(claim.attempt.id, AttemptState.SUCCEEDED)
    return claim


async def is_complete(store: Store) -> bool:
    """Whether the store's one rollout is."""
    (found,) = await store.rollouts(RolloutQuery())
    assert found.state is RolloutState.SUCCEEDED
    return found.complete


class RewardClaims:
    """`await_rewards`, and rewards after `take`."""

    async def test_a_success_is_complete_when_the_rewards_that_it_awaits_are_in(
        self, store: Store
    ) -> None:
        claim = await succeeded(store, "user", "judge")
        seen: list[tuple[bool, int, int]] = []
        for name in ("other", "judge", "user", "user"):
            await store.append([reward(claim.attempt.id, 0.5, name=name, ident=f"late {name}")])
            progress = await store.progress("run", Mode.TRAIN, 1)
            seen.append((await is_complete(store), progress.awaiting, progress.ended))
        assert seen == [(False, 1, 0), (False, 1, 0), (True, 0, 1), (True, 0, 1)]

    async def test_what_came_while_it_ran_is_not_awaited_any_more(self, store: Store) -> None:
        await store.enqueue(group(await_rewards=("user",)))
        (claim,) = await store.claim("worker")
        await store.append([reward(claim.attempt.id, 1.0, name="user", step="step")])
        finished = await store.finish(claim.attempt.id, AttemptState.SUCCEEDED)
        assert finished.complete

    async def test_even_the_final_reward_may_come_late(self, store: Store) -> None:
        await store.enqueue(group(await_rewards=("final",)))
        (claim,) = await store.claim("worker")
        finished = await store.finish(claim.attempt.id, AttemptState.SUCCEEDED)
        assert (finished.complete, finished.reward) == (False, None)
        await store.append([reward(claim.attempt.id, 0.25)])
        (found,) = await store.rollouts(RolloutQuery())
        assert (found.complete, found.reward) == (True, 0.25)

    async def test_a_failed_or_cancelled_rollout_awaits_nothing(self, store: Store) -> None:
        await store.enqueue(group(3, await_rewards=("user",)))
        failing, cancelled = await store.claim("worker", limit=2)
        failure = Failure(FailureKind.AGENT, "no")
        assert (
            await store.finish(failing.attempt.id, AttemptState.FAILED, failure=failure)
        ).complete
        await store.cancel([cancelled.rollout.id, group(3)[2].id])
        assert all(one.complete for one in await store.rollouts(RolloutQuery()))

    async def test_a_reward_of_a_former_attempt_is_not_the_one_awaited(self, store: Store) -> None:
        await store.enqueue(group(await_rewards=("user",)))
        (lost,) = await store.claim("worker")
        await store.append([reward(lost.attempt.id, 1.0, name="user")])
        await store.finish(lost.attempt.id, AttemptState.LOST, failure=LOST)
        await store.append([reward(lost.attempt.id, 1.0, name="user", revision=1)])
        (claim,) = await store.claim("worker")
        await store.finish(claim.attempt.id, AttemptState.SUCCEEDED)
        await store.append([reward(lost.attempt.id, 1.0, name="user", revision=2)])
        assert not await is_complete(store)
        await store.append([reward(claim.attempt.id, 1.0, name="user")])
        assert await is_complete(store)

    async def test_rewards_are_awaited_for_as_long_as_the_rollout_says(self, store: Store) -> None:
        for task, seconds in (("0", 0.0), ("60", 60.0), ("None", None)):
            await store.enqueue(group(task=task, await_rewards=("user",), await_seconds=seconds))
        for claim in await store.claim("worker", limit=3):
            await store.append([reward(claim.attempt.id, 0.5)])
            await store.finish(claim.attempt.id, AttemptState.SUCCEEDED)
        assert not any(one.complete for one in await store.rollouts(RolloutQuery()))
        waiting = asyncio.ensure_future(store.wait([group(task="0")[0].id], wait_seconds=60.0))
        assert await store.expire() == 0  # it counts attempts
        assert [one.spec.task_id for one in await waiting] == ["0"]
        found = {one.spec.task_id: one for one in await store.rollouts(RolloutQuery())}
        assert [found[task].complete for task in ("0", "60", "None")] == [True, False, False]
        (attempt,) = await store.attempts([found["0"].id])
        await store.append(
            [reward(attempt.id, 1.0, name="user"), reward(attempt.id, 2.0, revision=1)]
        )
        (late,) = await store.rollouts(RolloutQuery(task_id="0"))
        assert (late.complete, late.reward) == (True, 2.0)  # before its take it counts
        assert len(await store.ended("run")) == 1

    async def test_a_group_is_not_taken_while_a_member_awaits_rewards(self, store: Store) -> None:
        claim = await succeeded(store, "user")
        with pytest.raises(Conflict, match="await"):
            await store.take("run", 1, min_group=1)
        await store.append([reward(claim.attempt.id, 1.0, name="user")])
        assert len(await store.take("run", 1, min_group=1)) == 1

    async def test_readers_of_ends_and_waiters_are_told_of_completion(self, store: Store) -> None:
        claim = await succeeded(store, "user")
        assert await store.ended("run") == []
        assert await store.wait([claim.rollout.id]) == []
        waiting = asyncio.ensure_future(store.wait([claim.rollout.id], wait_seconds=60.0))
        counting = asyncio.ensure_future(
            store.progress("run", Mode.TRAIN, 1, seen=0, wait_seconds=60.0)
        )
        await store.append([reward(claim.attempt.id, 1.0, name="user")])
        assert [one.id for one in await waiting] == [claim.rollout.id]
        assert (await counting).ended == 1
        assert [one.rollout.id for one in await store.ended("run")] == [claim.rollout.id]

    async def test_of_equal_names_the_highest_revision_counts(self, store: Store) -> None:
        await store.enqueue(group())
        (claim,) = await store.claim("worker")
        sent = [(0.25, 1), (0.5, 0), (0.75, 1)]  # of equal revisions the later one
        for place, (value, revision) in enumerate(sent):
            one = reward(claim.attempt.id, value, revision=revision, ident=str(place))
            await store.append([one])
        finished = await store.finish(claim.attempt.id, AttemptState.SUCCEEDED)
        assert finished.reward == 0.75

    async def test_what_comes_after_the_take_is_stored_and_told_apart(self, store: Store) -> None:
        claim = await succeeded(store)
        await store.append([log(claim.attempt.id, "1")])
        (taken,) = await store.take("run", 1, min_group=1)
        late = reward(claim.attempt.id, 9.0, revision=1)
        await store.append([late])
        (again,) = await store.take("run", 1, min_group=1)
        assert again == taken
        (entry,) = await store.ledger("run")
        counted = entry.members[0].events
        assert (counted, entry.members[0].reward) == (taken.rollouts[0].events, 1.0)
        ((*events,),) = await store.events([claim.attempt.id])
        assert (counted, events[counted:]) == (2, [late])  # the reward and the line before it
