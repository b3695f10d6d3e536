"""Claims about the training ledger: nothing is counted twice."""
# ruff: noqa: D102  the name of a test is its claim

from __future__ import annotations

import pytest

from lightningrl.errors import ConfigError, Conflict
from lightningrl.schema import (
    AttemptState,
    Failure,
    FailureKind,
    Mode,
    NewRollout,
    RetryPolicy,
    RolloutState,
)
from lightningrl.store.base import LedgerEntry, LedgerMember, Store
from lightningrl_testkit.records import group, reward

FAILED = Failure(FailureKind.AGENT, "ValueError: no")


async def run_all(store: Store, rollouts: list[NewRollout], rewards: list[float | None]) -> None:
    """Enqueue rollouts and end each: with a reward if one is given, else as failed."""
    await store.enqueue(rollouts)
    claims = await store.claim("worker", limit=len(rollouts))
    for claim, value in zip(claims, rewards, strict=True):
        if value is None:
            await store.finish(claim.attempt.id, AttemptState.FAILED, failure=FAILED)
        else:
            await store.append([reward(claim.attempt.id, value)])
            await store.finish(claim.attempt.id, AttemptState.SUCCEEDED)


class LedgerClaims:
    """Take, commit, roll back."""

    async def test_groups_come_in_enqueue_order_and_members_in_order(self, store: Store) -> None:
        first, second = group(2, task="b"), group(2, task="a")
        await run_all(store, [first[1], second[0], first[0], second[1]], [1.0, 0.5, 2.0, 0.25])
        taken = await store.take("run", 1)
        assert [one.group_id for one in taken] == [first[0].group_id, second[0].group_id]
        rewards = [[one.reward for one in group_.rollouts] for group_ in taken]
        assert rewards == [[2.0, 1.0], [0.5, 0.25]]
        for one in taken[0].rollouts:
            assert one.attempt.rollout_id == one.rollout.id
            assert one.attempt.state is AttemptState.SUCCEEDED

    async def test_taking_again_returns_what_was_taken(self, store: Store) -> None:
        await run_all(store, group(2), [1.0, 0.5])
        first = await store.take("run", 1)
        attempt = first[0].rollouts[0].attempt.id
        await store.append([reward(attempt, 9.0, revision=1)])  # comes too late
        await run_all(store, group(2, task="late"), [1.0, 1.0])
        assert await store.take("run", 1) == first

    async def test_an_incomplete_group_is_a_conflict_and_takes_nothing(self, store: Store) -> None:
        await run_all(store, group(2), [1.0, 0.5])
        await store.enqueue(group(task="open"))
        with pytest.raises(Conflict, match="not complete"):
            await store.take("run", 1)
        assert await store.ledger("run") == []

    async def test_a_group_with_too_few_is_skipped(self, store: Store) -> None:
        await run_all(store, group(3), [1.0, None, None])
        assert await store.take("run", 1) == []
        assert [one.status for one in await store.ledger("run")] == ["skipped"]

    async def test_failed_members_are_left_out(self, store: Store) -> None:
        await run_all(store, group(3), [1.0, None, 0.5])
        (taken,) = await store.take("run", 1)
        assert [one.rollout.spec.member for one in taken.rollouts] == [0, 2]

    async def test_failed_members_are_taken_with_the_reward_that_the_caller_gives(
        self, store: Store
    ) -> None:
        await run_all(store, group(3), [1.0, None, 0.5])
        (taken,) = await store.take("run", 1, failure_reward=-1.0)
        assert [one.reward for one in taken.rollouts] == [1.0, -1.0, 0.5]
        failed = taken.rollouts[1]
        assert failed.rollout.state is RolloutState.FAILED
        assert failed.attempt.failure == FAILED
        # What was taken stands, whatever is asked for later.
        assert await store.take("run", 1) == [taken]
        (entry,) = await store.ledger("run")
        assert [one.reward for one in entry.members] == [1.0, -1.0, 0.5]

    async def test_failures_that_are_not_the_agents_are_never_taken(self, store: Store) -> None:
        kinds = (FailureKind.INFRASTRUCTURE, FailureKind.NO_REWARD, FailureKind.AGENT)
        once = RetryPolicy(max_attempts=1, max_infrastructure_failures=0)
        await store.enqueue(group(3, retry=once))
        claims = await store.claim("worker", limit=3)
        for claim, kind in zip(claims, kinds, strict=True):
            await store.append([reward(claim.attempt.id, 9.0)])  # then it failed all the same
            failure = Failure(kind, "no")
            await store.finish(claim.attempt.id, AttemptState.FAILED, failure=failure)
        (taken,) = await store.take("run", 1, min_group=1, failure_reward=0.0)
        assert [(one.rollout.spec.member, one.reward) for one in taken.rollouts] == [(2, 0.0)]

    async def test_a_failure_reward_is_a_finite_number(self, store: Store) -> None:
        with pytest.raises(ConfigError, match="failure_reward"):
            await store.take("run", 1, failure_reward=float("nan"))

    async def test_a_rollout_without_a_reward_is_not_taken(self, store: Store) -> None:
        await store.enqueue(group(3))
        for claim, value in zip(await store.claim("worker", limit=3), (1.0, 0.5), strict=False):
            await store.append([reward(claim.attempt.id, value)])
        for attempt in await store.attempts([one.id for one in group(3)]):
            await store.finish(attempt.id, AttemptState.SUCCEEDED)
        (taken,) = await store.take("run", 1)
        assert [one.reward for one in taken.rollouts] == [1.0, 0.5]

    async def test_min_group_is_the_caller_s(self, store: Store) -> None:
        await run_all(store, group(1), [1.0])
        assert len(await store.take("run", 1, min_group=1)) == 1

    async def test_groups_in_skip_are_skipped(self, store: Store) -> None:
        left, right = group(2, task="left"), group(2, task="right")
        await run_all(store, left + right, [1.0] * 4)
        (taken,) = await store.take("run", 1, skip=[left[0].group_id])
        assert taken.group_id == right[0].group_id

    async def test_only_training_rollouts_of_that_run_and_iteration(self, store: Store) -> None:
        others = group(2, mode=Mode.VAL) + group(2, run="other") + group(2, iteration=2)
        await run_all(store, others, [1.0] * 6)
        assert await store.take("run", 1) == []
        await run_all(store, group(2), [1.0] * 2)  # so nothing was decided by that
        assert len(await store.take("run", 1)) == 1

    async def test_committing_again_changes_nothing(self, store: Store) -> None:
        await run_all(store, group(2), [1.0, 0.5])
        (taken,) = await store.take("run", 1)
        assert [one.committed for one in await store.ledger("run")] == [False]
        await store.commit("run", 1)
        await store.commit("run", 1)
        assert await store.ledger("run") == [
            LedgerEntry(
                run="run",
                iteration=1,
                group_id=group()[0].group_id,
                status="taken",
                members=tuple(
                    LedgerMember(one.rollout.id, one.attempt.id, one.reward, events=1)
                    for one in taken.rollouts
                ),
                committed=True,
            )
        ]

    async def test_rolling_back_forgets_later_takes_only(self, store: Store) -> None:
        for iteration in (1, 2, 3):
            await run_all(store, group(2, iteration=iteration), [1.0, 0.5])
            await store.take("run", iteration)
        assert await store.roll_back("run", after=1) == [2, 3]
        assert await store.roll_back("run", after=1) == []
        assert [one.iteration for one in await store.ledger("run")] == [1]

    async def test_the_ledger_of_an_iteration_or_a_group_is_read_alone(self, store: Store) -> None:
        for iteration in (1, 2):
            both = group(2, task="a", iteration=iteration) + group(1, task="b", iteration=iteration)
            await run_all(store, both, [1.0, 0.5, 1.0])
            await store.take("run", iteration)
        every = await store.ledger("run")
        assert [(one.iteration, one.status) for one in every] == [
            (1, "taken"), (1, "skipped"), (2, "taken"), (2, "skipped")
        ]  # fmt: skip
        assert await store.ledger("run", iteration=2) == every[2:]
        assert await store.ledger("run", group_id=every[1].group_id) == every[1:2]
        assert await store.ledger("run", iteration=1, group_id=every[2].group_id) == []
        assert await store.ledger("run", iteration=3) == await store.ledger("other") == []

    async def test_after_rolling_back_the_same_take_gives_the_same_groups(
        self, store: Store
    ) -> None:
        await run_all(store, group(2) + group(2, task="other"), [1.0, 0.5, 0.25, 0.75])
        first = await store.take("run", 1)
        await store.commit("run", 1)
        await store.roll_back("run", after=0)
        assert await store.take("run", 1) == first
        assert [one.committed for one in await store.ledger("run")] == [False, False]
