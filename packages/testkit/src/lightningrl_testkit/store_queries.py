"""Claims about filters, orders and pages, groups, tasks and statistics."""
# ruff: noqa: D102  the name of a test is its claim

from __future__ import annotations

from collections.abc import Sequence

import pytest

from lightningrl.schema import (
    AttemptState,
    Failure,
    FailureKind,
    Mode,
    Rollout,
    RolloutId,
    RolloutState,
)
from lightningrl.store.base import GroupQuery, RolloutOrder, RolloutQuery, Store
from lightningrl_testkit.records import call, group, reward

LOST = Failure(FailureKind.LOST, "gone")
AGENT_FAILED = Failure(FailureKind.AGENT, "no")


async def scored(store: Store, values: Sequence[float | None]) -> None:
    """End as many of the queued rollouts as there are `values`, oldest first; None: it failed."""
    for value in values:
        (claim,) = await store.claim("worker")
        if value is None:
            await store.finish(claim.attempt.id, AttemptState.FAILED, failure=AGENT_FAILED)
        else:
            await store.append([reward(claim.attempt.id, value)])
            await store.finish(claim.attempt.id, AttemptState.SUCCEEDED)


async def pages(store: Store, query: RolloutQuery) -> list[list[Rollout]]:
    """Page by page, until one is not full."""
    assert query.limit is not None
    found = [await store.rollouts(query)]
    while len(found[-1]) == query.limit:
        query = query.following(found[-1][-1])
        found.append(await store.rollouts(query))
    return found


class QueryClaims:
    """Rollouts by query, groups, tasks, statistics."""

    async def test_rewards_failures_and_tasks_narrow_a_query(self, store: Store) -> None:
        await store.enqueue(group(4) + group(1, task="other"))
        await scored(store, [0.25, 0.5, 1.0])
        lost, failed = await store.claim("worker", limit=2)
        await store.finish(lost.attempt.id, AttemptState.LOST, failure=LOST)
        await store.finish(failed.attempt.id, AttemptState.FAILED, failure=AGENT_FAILED)
        queries = {
            RolloutQuery(min_reward=0.5): [0.5, 1.0],
            RolloutQuery(max_reward=0.5): [0.25, 0.5],
            RolloutQuery(min_reward=0.3, max_reward=0.6): [0.5],
            RolloutQuery(task_id="other"): [None],
            RolloutQuery(task_id="none"): [],
            RolloutQuery(failure_kinds=(FailureKind.LOST, FailureKind.TIMEOUT)): [None],
            RolloutQuery(failure_kinds=(FailureKind.TIMEOUT,)): [],
        }
        for query, rewards in queries.items():
            found = await store.rollouts(query)
            assert sorted(one.reward or 0 for one in found) == [one or 0 for one in rewards], query
        # A failure of a former attempt is not the latest one's.
        (claim,) = await store.claim("worker")
        await store.finish(claim.attempt.id, AttemptState.SUCCEEDED)
        assert await store.rollouts(RolloutQuery(failure_kinds=(FailureKind.LOST,))) == []

    @pytest.mark.parametrize("order", list(RolloutOrder))
    @pytest.mark.parametrize("descending", [False, True])
    async def test_pages_in_any_order_are_the_whole_in_that_order(
        self, store: Store, order: RolloutOrder, descending: bool
    ) -> None:
        for task in ("a", "b"):
            await store.enqueue(group(3, task=task))
        await scored(store, [0.5, None, 1.0, 0.5])
        query = RolloutQuery(order=order, descending=descending)
        whole = await store.rollouts(query)
        paged = await pages(store, RolloutQuery(order=order, descending=descending, limit=2))
        assert [one for page in paged for one in page] == whole
        assert len(whole) == 6

        def key(one: Rollout) -> tuple[float, str] | None:
            value = {
                RolloutOrder.CREATED: one.created_at.timestamp(),
                RolloutOrder.ENDED: one.ended_at and one.ended_at.timestamp(),
                RolloutOrder.REWARD: one.reward,
                RolloutOrder.ATTEMPTS: one.attempts,
            }[order]
            return None if value is None else (value, one.id)

        keys = [key(one) for one in whole]
        present = [one for one in keys if one is not None]
        assert keys == [*sorted(present, reverse=descending), *[None] * (6 - len(present))]

    async def test_what_is_enqueued_between_two_pages_moves_nothing(self, store: Store) -> None:
        await store.enqueue(group(4))
        query = RolloutQuery(limit=2, descending=True)
        first = await store.rollouts(query)
        await store.enqueue(group(3, task="new"))
        second = await store.rollouts(query.following(first[-1]))
        assert {one.id for one in first + second} == {one.id for one in group(4)}

    async def test_an_unknown_id_gives_an_empty_page(self, store: Store) -> None:
        await store.enqueue(group())
        assert await store.rollouts(RolloutQuery(ids=(RolloutId("nobody"),))) == []

    async def test_groups_are_counted_and_complete_when_all_members_are(self, store: Store) -> None:
        await store.enqueue(group(3, task="a") + group(2, task="b", iteration=2))
        await store.enqueue(group(1, task="c", mode=Mode.VAL, variant="greedy"))
        await scored(store, [0.5, None, 1.0, 0.25])
        first, second, third = await store.groups(GroupQuery(run="run"))
        assert (first.task_id, first.members, first.ended, first.succeeded) == ("a", 3, 3, 2)
        assert (first.rewarded, first.mean_reward) == (2, 0.75)  # (0.5 + 1.0) / 2
        assert (second.iteration, second.members, second.complete) == (2, 2, 1)
        assert (third.mode, third.variant, third.mean_reward) == (Mode.VAL, "greedy", None)
        assert [one.is_complete for one in (first, second, third)] == [True, False, False]
        queries = {
            GroupQuery(run="run", mode=Mode.VAL): [third],
            GroupQuery(run="run", iteration=2): [second],
            GroupQuery(run="run", task_id="a"): [first],
            GroupQuery(run="run", complete=True): [first],
            GroupQuery(run="run", complete=False): [second, third],
            GroupQuery(run="run", limit=1): [first],
            GroupQuery(run="run", after=first.cursor): [second, third],
            GroupQuery(run="unknown"): [],
        }
        for query, expected in queries.items():
            assert await store.groups(query) == expected, query

    async def test_a_group_that_awaits_rewards_is_not_complete(self, store: Store) -> None:
        await store.enqueue(group(await_rewards=("user",)))
        await scored(store, [1.0])
        (found,) = await store.groups(GroupQuery(run="run"))
        assert (found.ended, found.complete, found.is_complete) == (1, 0, False)

    async def test_tasks_are_counted_over_their_groups(self, store: Store) -> None:
        for iteration in (1, 2):
            await store.enqueue(group(2, task="a", iteration=iteration))
        await store.enqueue(group(1, task="b"))
        await scored(store, [0.5, 1.0, 0.0])
        first, second = await store.tasks(GroupQuery(run="run"))
        assert (first.task_id, first.groups, first.rollouts, first.ended) == ("a", 2, 4, 3)
        assert (first.succeeded, first.mean_reward) == (3, 0.5)  # (0.5 + 1.0 + 0.0) / 3
        assert first.task == group(task="a")[0].task
        assert (second.task_id, second.rollouts, second.mean_reward) == ("b", 1, None)
        assert await store.tasks(GroupQuery(run="run", after=first.cursor)) == [second]
        assert [one.rollouts for one in await store.tasks(GroupQuery(run="run", iteration=2))] == [
            2
        ]
        assert await store.tasks(GroupQuery(run="run", complete=False)) == [first, second]

    async def test_statistics_tell_counts_tokens_and_rewards(self, store: Store) -> None:
        await store.enqueue(group(4) + group(1, mode=Mode.VAL))
        (claim,) = await store.claim("worker")
        calls = [
            call(claim.attempt.id, "1"),
            call(claim.attempt.id, "2", prompt=range(10), answer=[1]),
        ]
        await store.append([*calls, reward(claim.attempt.id, 0.0)])
        await store.finish(claim.attempt.id, AttemptState.SUCCEEDED)
        await scored(store, [0.5, None, 1.0])
        await store.cancel([group(1, mode=Mode.VAL)[0].id])
        found = await store.statistics("run", mode=Mode.TRAIN)
        assert found.rollouts == {RolloutState.SUCCEEDED: 3, RolloutState.FAILED: 1}
        assert found.attempts == {AttemptState.SUCCEEDED: 3, AttemptState.FAILED: 1}
        assert found.failures == {FailureKind.AGENT: 1}
        assert found.events == {"call": 2, "reward": 3}
        assert (found.prompt_tokens, found.completion_tokens) == (13, 3)  # 3 + 10, 2 + 1
        assert found.reward is not None
        assert (found.reward.count, found.reward.mean, found.reward.median) == (3, 0.5, 0.5)
        assert (found.reward.least, found.reward.p90, found.reward.most) == (0.0, 1.0, 1.0)
        assert found.attempt_seconds is not None
        assert found.attempt_seconds.count == 3
        assert found.queue_seconds is not None
        assert found.queue_seconds.count == 4
        assert found.ended_lately == 4
        assert (await store.statistics("run")).rollouts[RolloutState.CANCELLED] == 1

    async def test_of_a_run_without_rollouts_there_are_no_rates(self, store: Store) -> None:
        found = await store.statistics("unknown")
        assert (found.rollouts, found.prompt_tokens, found.ended_lately) == ({}, 0, 0)
        assert found.reward is found.attempt_seconds is found.queue_seconds is None
        assert found.ended_per_second is None
