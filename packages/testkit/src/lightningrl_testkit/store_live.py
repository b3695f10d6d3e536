"""Claims about live rollouts: only their own process runs them, and iterations may be given them."""
# ruff: noqa: D102  the name of a test is its claim

from __future__ import annotations

import msgspec
import pytest

from lightningrl.errors import ConfigError, Conflict, NotFound
from lightningrl.schema import (
    AttemptState,
    Claim,
    Failure,
    FailureKind,
    Mode,
    NewRollout,
    Progress,
    RetryPolicy,
    RolloutId,
    RolloutState,
)
from lightningrl.store.base import Retention, RolloutQuery, Store
from lightningrl_testkit.records import group, reward

FAILED = Failure(FailureKind.AGENT, "ValueError: no")


def live(name: str, *, run: str = "run", await_rewards: tuple[str, ...] = ()) -> NewRollout:
    """A live rollout, a group of its own."""
    once = RetryPolicy(max_attempts=1, max_infrastructure_failures=0)
    one = group(run=run, mode=Mode.LIVE, task=name, retry=once, await_rewards=await_rewards)
    return one[0]


async def begin(store: Store, one: NewRollout) -> Claim:
    """Enqueue it and claim it by its id."""
    await store.enqueue([one])
    (claim,) = await store.claim("service", rollout_ids=[one.id])
    return claim


async def serve(store: Store, name: str, value: float | None = 1.0) -> RolloutId:
    """Run a live rollout to its success, rewarded unless `value` is `None`."""
    claim = await begin(store, live(name))
    if value is not None:
        await store.append([reward(claim.attempt.id, value)])
    await store.finish(claim.attempt.id, AttemptState.SUCCEEDED)
    return claim.rollout.id


async def iterations(store: Store) -> dict[RolloutId, int]:
    """Live rollout -> the iteration that it was given to; 0: none."""
    found = await store.rollouts(RolloutQuery(mode=Mode.LIVE))
    return {one.id: one.spec.iteration for one in found}


class LiveClaims:
    """`claim` by id, `give_live`, and what the ledger makes of it."""

    async def test_a_live_rollout_is_claimed_by_its_id_alone(self, store: Store) -> None:
        mine = live("mine")
        await store.enqueue([mine, *group()])
        claims = await store.claim("runner", limit=5)
        assert [one.rollout.id for one in claims] == [group()[0].id]
        assert await store.claim("runner", run="run") == []
        assert await store.claim("service", run="other", rollout_ids=[mine.id]) == []
        (claim,) = await store.claim("service", rollout_ids=[mine.id, RolloutId("unknown")])
        assert (claim.rollout.id, claim.attempt.worker) == (mine.id, "service")
        assert await store.claim("service", rollout_ids=[mine.id]) == []

    async def test_claims_by_id_come_in_the_callers_order(self, store: Store) -> None:
        first, second = group(2)
        await store.enqueue([first, second])
        claims = await store.claim("runner", rollout_ids=[second.id, first.id], limit=2)
        assert [one.rollout.id for one in claims] == [second.id, first.id]

    async def test_a_failed_live_rollout_is_not_queued_again(self, store: Store) -> None:
        claim = await begin(store, live("a"))
        await store.finish(claim.attempt.id, AttemptState.FAILED, failure=FAILED)
        assert await store.retry([claim.rollout.id]) == 0
        (found,) = await store.rollouts(RolloutQuery())
        assert found.state is RolloutState.FAILED

    async def test_a_live_rollout_is_not_enqueued_for_an_iteration(self, store: Store) -> None:
        (one,) = group(mode=Mode.LIVE, iteration=3)
        with pytest.raises(Conflict, match="iteration 3"):
            await store.enqueue([one])
        assert await store.rollouts(RolloutQuery()) == []

    async def test_nothing_live_is_taken_that_was_not_given(self, store: Store) -> None:
        await serve(store, "a")
        assert await store.take("run", 1) == []
        assert await store.take("run", 0) == []

    async def test_what_was_given_is_taken_in_enqueue_order_as_groups_of_any_size(
        self, store: Store
    ) -> None:
        first, second = await serve(store, "a", 0.5), await serve(store, "b", -1.0)
        assert await store.give_live("run", 1, [second, first]) == [first, second]
        taken = await store.take("run", 1, min_group=2)
        rewards = [[(one.rollout.id, one.reward) for one in of.rollouts] for of in taken]
        assert rewards == [[(first, 0.5)], [(second, -1.0)]]
        assert [one.rollout_ids for one in await store.ledger("run")] == [(first,), (second,)]

    async def test_live_rollouts_are_taken_beside_groups_of_tasks(self, store: Store) -> None:
        await store.enqueue(group(2))
        for claim in await store.claim("runner", limit=2):
            await store.append([reward(claim.attempt.id, 1.0)])
            await store.finish(claim.attempt.id, AttemptState.SUCCEEDED)
        served = await serve(store, "a")
        await store.give_live("run", 1, [served])
        assert [len(one.rollouts) for one in await store.take("run", 1)] == [2, 1]

    async def test_what_an_iteration_was_given_stands(self, store: Store) -> None:
        first, second = await serve(store, "a"), await serve(store, "b")
        assert await store.give_live("run", 1, [first]) == [first]
        assert await store.give_live("run", 1, [second]) == [first]
        assert await iterations(store) == {first: 1, second: 0}

    async def test_an_iteration_that_has_taken_is_given_no_more(self, store: Store) -> None:
        await store.enqueue(group(1))
        (claim,) = await store.claim("runner")
        await store.append([reward(claim.attempt.id, 1.0)])
        await store.finish(claim.attempt.id, AttemptState.SUCCEEDED)
        taken = await store.take("run", 1, min_group=1)
        served = await serve(store, "a")
        assert await store.give_live("run", 1, [served]) == []
        assert await store.take("run", 1, min_group=1) == taken
        assert await store.give_live("run", 2, [served]) == [served]

    async def test_a_rollout_is_given_once(self, store: Store) -> None:
        first, second = await serve(store, "a"), await serve(store, "b")
        await store.give_live("run", 1, [first])
        with pytest.raises(Conflict, match="iteration 1 was given it"):
            await store.give_live("run", 2, [second, first])
        assert await iterations(store) == {first: 1, second: 0}

    async def test_a_repeated_enqueue_of_what_was_given_changes_nothing(self, store: Store) -> None:
        given = await serve(store, "a")
        await store.give_live("run", 2, [given])
        assert await store.enqueue([live("a")]) == 0
        assert await iterations(store) == {given: 2}
        with pytest.raises(Conflict, match="another resources"):
            await store.enqueue([msgspec.structs.replace(live("a"), resources={"prompt": 1})])

    async def test_only_complete_live_rollouts_of_the_run_are_given(self, store: Store) -> None:
        running = (await begin(store, live("running"))).rollout.id
        other = (await begin(store, live("other", run="other"))).rollout.id
        awaiting = await begin(store, live("awaiting", await_rewards=("final",)))
        await store.finish(awaiting.attempt.id, AttemptState.SUCCEEDED)
        await store.enqueue(group())
        for ident, told in (
            (running, "has not ended"),
            (awaiting.rollout.id, "awaits rewards"),
            (other, "of run 'other'"),
            (group()[0].id, "no live rollout"),
        ):
            with pytest.raises(Conflict, match=told):
                await store.give_live("run", 1, [ident])
        with pytest.raises(NotFound, match="unknown"):
            await store.give_live("run", 1, [RolloutId("unknown")])
        with pytest.raises(ConfigError, match="iteration"):
            await store.give_live("run", 0, [])
        assert set((await iterations(store)).values()) == {0}

    async def test_after_rolling_back_an_iteration_has_the_same_live_rollouts(
        self, store: Store
    ) -> None:
        first, second = await serve(store, "a"), await serve(store, "b")
        await store.give_live("run", 1, [first])
        before = await store.take("run", 1)
        await store.roll_back("run", after=0)
        assert await store.ledger("run") == []
        assert await store.give_live("run", 1, [second, first]) == [first]
        assert await store.take("run", 1) == before

    async def test_skipped_and_unrewarded_ones_are_spent_and_in_the_ledger(
        self, store: Store
    ) -> None:
        stale, unrewarded = await serve(store, "a"), await serve(store, "b", None)
        await store.give_live("run", 1, [stale, unrewarded])
        assert await store.take("run", 1, skip=[live("a").group_id]) == []
        ledger = await store.ledger("run")
        assert [(one.group_id, one.status) for one in ledger] == [
            (live("a").group_id, "skipped"),
            (live("b").group_id, "skipped"),
        ]
        with pytest.raises(Conflict, match="was given it"):
            await store.give_live("run", 2, [stale])

    async def test_what_is_given_leaves_the_progress_of_live_traffic(self, store: Store) -> None:
        served = await serve(store, "a", 0.5)
        await serve(store, "b", None)
        await store.give_live("run", 3, [served])
        assert await store.progress("run", Mode.LIVE, 0) == Progress(succeeded=1)
        taken = await store.progress("run", Mode.LIVE, 3)
        assert taken == Progress(succeeded=1, reward_sum=0.5, rewarded=1)

    async def test_what_was_given_is_kept_until_it_is_committed(self, store: Store) -> None:
        served, free = await serve(store, "a"), await serve(store, "b")
        await store.give_live("run", 1, [served])
        everything = Retention(max_age_seconds=0.0)

        async def is_kept() -> None:
            with pytest.raises(Conflict, match="iteration 1 was given"):
                await store.delete_rollouts([free, served])

        await is_kept()
        await store.take("run", 1)
        await is_kept()
        await store.roll_back("run", after=0)
        await is_kept()
        await store.take("run", 1)
        assert await store.retain(everything) == 1
        assert set(await iterations(store)) == {served}
        await store.commit("run", 1)
        assert await store.retain(everything) == 1

    async def test_what_was_given_and_not_taken_goes_with_its_run(self, store: Store) -> None:
        served = await serve(store, "a")
        await store.give_live("run", 1, [served])
        await store.take("run", 1)
        with pytest.raises(Conflict, match="roll it back"):
            await store.delete_run("run")
        await store.roll_back("run", after=0)
        assert await store.delete_run("run") == 1
