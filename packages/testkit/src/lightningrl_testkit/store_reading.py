"""Claims about queries, progress and counts."""
# ruff: noqa: D102  the name of a test is its claim

from __future__ import annotations

import asyncio

from lightningrl.schema import (
    AttemptState,
    Failure,
    FailureKind,
    Mode,
    Progress,
    RolloutState,
)
from lightningrl.store.base import RolloutQuery, RunSummary, Store
from lightningrl_testkit.records import group, log, policy, reward


async def finish_all(store: Store, rewards: list[float | None]) -> None:
    """Claim as many rollouts as there are `rewards` and let them succeed with these."""
    claims = await store.claim("worker", limit=len(rewards))
    for claim, value in zip(claims, rewards, strict=True):
        if value is not None:
            await store.append([reward(claim.attempt.id, value)])
        await store.finish(claim.attempt.id, AttemptState.SUCCEEDED)


class ReadingClaims:
    """Everything that is read."""

    async def test_each_field_of_a_query_narrows(self, store: Store) -> None:
        train, val = group(2, iteration=1), group(2, mode=Mode.VAL, iteration=2, variant="greedy")
        other = group(run="other", iteration=3)
        await store.enqueue(train + val + other)
        (claim,) = await store.claim("worker", run="run")
        queries = {
            RolloutQuery(): [*train, *val, *other],
            RolloutQuery(run="run"): [*train, *val],
            RolloutQuery(mode=Mode.VAL): val,
            RolloutQuery(iteration=3): other,
            RolloutQuery(variant="greedy"): val,
            RolloutQuery(group_id=train[0].group_id): train,
            RolloutQuery(ids=(val[1].id,)): val[1:],
            RolloutQuery(states=(RolloutState.RUNNING,)): [claim.rollout.spec],
            RolloutQuery(run="other", mode=Mode.VAL): [],
        }
        for query, expected in queries.items():
            found = [one.id for one in await store.rollouts(query)]
            assert sorted(found) == sorted(one.id for one in expected), query

    async def test_rollouts_come_by_creation_then_id(self, store: Store) -> None:
        for task in ("first", "second"):
            await store.enqueue(group(2, task=task))
        oldest = await store.rollouts(RolloutQuery())
        newest = await store.rollouts(RolloutQuery(descending=True))
        assert [(one.created_at, one.id) for one in oldest] == sorted(
            (one.created_at, one.id) for one in oldest
        )
        assert newest == oldest[::-1]
        assert await store.rollouts(RolloutQuery(limit=2).following(oldest[0])) == oldest[1:3]

    async def test_attempts_come_by_rollout_as_given_then_number(self, store: Store) -> None:
        await store.enqueue(group(2))
        first, second = await store.claim("worker", limit=2)
        lost = Failure(FailureKind.LOST, "released")
        await store.finish(first.attempt.id, AttemptState.LOST, failure=lost)
        (third,) = await store.claim("worker")
        found = await store.attempts([second.rollout.id, first.rollout.id])
        assert [one.id for one in found] == [
            second.attempt.id,
            first.attempt.id,
            third.attempt.id,
        ]

    async def test_ended_reads_on_from_a_cursor_in_order_of_ending(self, store: Store) -> None:
        await store.enqueue(group(3) + group(run="other"))
        first, second, third = await store.claim("worker", run="run", limit=3)
        await store.finish(second.attempt.id, AttemptState.SUCCEEDED)
        await store.cancel([third.rollout.id])
        seen = await store.ended("run")
        assert [one.rollout.id for one in seen] == [second.rollout.id, third.rollout.id]
        await store.finish(first.attempt.id, AttemptState.SUCCEEDED)
        later = await store.ended("run", after=seen[-1].cursor)
        assert [one.rollout.id for one in later] == [first.rollout.id]
        assert await store.ended("run", limit=1) == seen[:1]
        assert await store.ended("other") == []

    async def test_progress_counts_one_iteration(self, store: Store) -> None:
        await store.enqueue(group(4) + group(5, iteration=2) + group(6, mode=Mode.VAL))
        await finish_all(store, [0.5, 1.0, None])
        # 3 of 4 succeeded, two of these with a reward: 0.5 + 1.0 = 1.5
        assert await store.progress("run", Mode.TRAIN, 1) == Progress(
            queued=1, succeeded=3, reward_sum=1.5, rewarded=2
        )
        assert await store.progress("unknown", Mode.TRAIN, 1) == Progress()

    async def test_progress_is_narrowed_to_a_variant(self, store: Store) -> None:
        greedy = group(2, mode=Mode.VAL, variant="greedy")
        await store.enqueue(greedy + group(3, mode=Mode.VAL, variant="sampled"))
        assert (await store.progress("run", Mode.VAL, 1)).queued == 5
        assert (await store.progress("run", Mode.VAL, 1, variant="greedy")).queued == 2

    async def test_progress_returns_at_once_unless_nothing_changed(self, store: Store) -> None:
        await store.enqueue(group(2))
        progress = await store.progress("run", Mode.TRAIN, 1, seen=1, wait_seconds=3600.0)
        assert progress.ended == 0

    async def test_progress_waits_for_an_end(self, store: Store) -> None:
        await store.enqueue(group(2))
        waiting = asyncio.ensure_future(
            store.progress("run", Mode.TRAIN, 1, seen=0, wait_seconds=60.0)
        )
        await finish_all(store, [1.0])
        assert (await waiting).ended == 1

    async def test_the_summary_counts_states_and_kinds(self, store: Store) -> None:
        await store.enqueue(group(3))
        first, _ = await store.claim("worker", limit=2)
        await store.append([log(first.attempt.id, "1"), reward(first.attempt.id, 1.0)])
        await store.finish(first.attempt.id, AttemptState.SUCCEEDED)
        assert await store.summary("run") == RunSummary(
            run="run",
            rollouts={"queued": 1, "running": 1, "succeeded": 1},
            attempts={"running": 1, "succeeded": 1},
            events={"log": 1, "reward": 1},
        )
        assert await store.summary("unknown") == RunSummary("unknown", {}, {}, {})

    async def test_runs_are_those_with_rollouts_or_policies(self, store: Store) -> None:
        await store.put_policy(policy(run="b"))
        await store.enqueue(group(run="c") + group(run="a"))
        assert await store.runs() == ["a", "b", "c"]

    async def test_the_secret_stays_the_same(self, store: Store) -> None:
        assert await store.secret() == await store.secret()
        assert len(await store.secret()) >= 32
