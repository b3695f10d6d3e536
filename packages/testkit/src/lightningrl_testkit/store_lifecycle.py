"""Claims about the life of rollouts and attempts."""
# ruff: noqa: D102  the name of a test is its claim

from __future__ import annotations

import asyncio

import pytest
from msgspec.structs import replace

from lightningrl.errors import Conflict, NotFound, StaleAttempt
from lightningrl.keys import check_attempt_key
from lightningrl.schema import (
    AttemptId,
    AttemptState,
    Claim,
    Failure,
    FailureKind,
    Fork,
    OnDivergence,
    RetryPolicy,
    RolloutId,
    RolloutState,
    StepId,
)
from lightningrl.store.base import RolloutQuery, Store
from lightningrl_testkit.records import group, log, reward

AGENT_FAILED = Failure(FailureKind.AGENT, "ValueError: no")
ENGINE_FAILED = Failure(FailureKind.INFRASTRUCTURE, "the engine is gone")
TIMED_OUT = Failure(FailureKind.TIMEOUT, "too long")


async def claim_one(store: Store, *, lease_seconds: float = 30.0) -> Claim:
    """The only claim that is to be had."""
    (claim,) = await store.claim("worker", lease_seconds=lease_seconds)
    return claim


async def state_of(store: Store, rollout: RolloutId) -> RolloutState:
    """Where a rollout stands."""
    (found,) = await store.rollouts(RolloutQuery(ids=(rollout,)))
    return found.state


class LifecycleClaims:
    """Enqueue, claim, heartbeat, finish, cancel, expire."""

    async def test_enqueueing_returns_how_many_were_new(self, store: Store) -> None:
        three = group(3)
        assert await store.enqueue(three[:2]) == 2
        assert await store.enqueue(three) == 1
        assert await store.enqueue(three) == 0

    async def test_enqueueing_again_keeps_what_happened_meanwhile(self, store: Store) -> None:
        await store.enqueue(group())
        claim = await claim_one(store)
        await store.finish(claim.attempt.id, AttemptState.SUCCEEDED)
        await store.enqueue(group())
        assert await state_of(store, claim.rollout.id) is RolloutState.SUCCEEDED

    @pytest.mark.parametrize("field", ["run", "iteration", "task", "task_id", "group_id"])
    async def test_an_id_used_for_something_else_is_a_conflict(
        self, store: Store, field: str
    ) -> None:
        (one,) = group()
        other = {"iteration": 2, "task": {"question": "another"}}.get(field, "another")
        await store.enqueue([one])
        with pytest.raises(Conflict, match=one.id):
            await store.enqueue([*group(task="new"), replace(one, **{field: other})])
        assert len(await store.rollouts(RolloutQuery())) == 1  # the new one was not added either

    async def test_a_task_with_numbers_that_equal_nothing_is_the_same_again(
        self, store: Store
    ) -> None:
        task = {"best": float("nan"), "limits": (float("inf"), 1)}
        rollouts = [replace(one, task=task) for one in group()]
        assert [await store.enqueue(rollouts) for _ in range(2)] == [len(rollouts), 0]

    async def test_a_rollout_is_enqueued_with_every_field(self, store: Store) -> None:
        (one,) = group(timeout_seconds=7.0, retry=RetryPolicy(max_attempts=9))
        said = {"content": None, "tool_calls": [{"id": "1"}]}
        fork = Fork(AttemptId("a-0"), StepId("s-1"), said, OnDivergence.SAMPLE)
        one = replace(one, fork=fork, replay_staleness=2)
        await store.enqueue([one])
        (found,) = await store.rollouts(RolloutQuery())
        assert found.spec == one
        assert (found.state, found.attempts, found.reward) == (RolloutState.QUEUED, 0, None)
        assert found.ended_at is None

    async def test_a_failure_s_message_may_hold_anything(self, store: Store) -> None:
        await store.enqueue(group())
        claim = await claim_one(store)
        failure = Failure(FailureKind.AGENT, "a\0b\udcffc é\n")
        finishing = store.finish(claim.attempt.id, AttemptState.FAILED, failure=failure)
        assert (await finishing).state is RolloutState.FAILED
        _, attempt = await store.attempt(claim.attempt.id)
        assert attempt.failure == failure == Failure(FailureKind.AGENT, "a\\x00b\\udcffc é\n")

    async def test_claims_come_oldest_first_and_once(self, store: Store) -> None:
        await store.enqueue(group(3))
        first = await store.claim("a", limit=2)
        second = await store.claim("b", limit=2)
        assert [one.rollout.spec.member for one in first + second] == [0, 1, 2]
        assert await store.claim("a") == []

    async def test_a_claim_starts_an_attempt_by_that_worker(self, store: Store) -> None:
        await store.enqueue(group())
        claim = await claim_one(store)
        assert claim.rollout.state is RolloutState.RUNNING
        assert claim.rollout.attempts == claim.attempt.number == 1
        assert (claim.attempt.worker, claim.attempt.state) == ("worker", AttemptState.RUNNING)
        assert await store.attempt(claim.attempt.id) == (claim.rollout, claim.attempt)

    async def test_claims_are_narrowed_to_a_run(self, store: Store) -> None:
        await store.enqueue(group(run="one") + group(run="two"))
        (claim,) = await store.claim("worker", run="two", limit=5)
        assert claim.rollout.spec.run == "two"

    async def test_the_key_of_a_claim_is_that_attempt_s(self, store: Store) -> None:
        await store.enqueue(group(timeout_seconds=60.0))
        claim = await claim_one(store)
        key = check_attempt_key(await store.secret(), claim.key)
        key.refuse_expired(await store.now())
        assert key.attempt_id == claim.attempt.id

    async def test_a_waiting_claim_gets_what_is_enqueued_meanwhile(self, store: Store) -> None:
        waiting = asyncio.ensure_future(store.claim("worker", wait_seconds=60.0))
        while not await store.workers():  # until the claim has looked once
            continue
        await store.enqueue(group())
        assert len(await waiting) == 1

    async def test_a_waiting_claim_gets_what_is_queued_again(self, store: Store) -> None:
        await store.enqueue(group())
        claim = await claim_one(store)
        waiting = asyncio.ensure_future(store.claim("other", wait_seconds=60.0))
        while len(await store.workers()) < 2:
            continue
        await store.finish(claim.attempt.id, AttemptState.FAILED, failure=ENGINE_FAILED)
        (again,) = await waiting
        assert again.attempt.number == 2

    async def test_workers_are_seen_by_claim_and_heartbeat(self, store: Store) -> None:
        await store.enqueue(group())
        await store.claim("busy", run="run")
        await store.claim("idle")
        await store.heartbeat("beating", [])
        seen = {one.name: (one.run, one.running) for one in await store.workers()}
        assert seen == {"busy": ("run", 1), "idle": (None, 0), "beating": (None, 0)}

    async def test_the_registry_knows_what_a_worker_got_and_holds(self, store: Store) -> None:
        await store.enqueue(group(3))
        first, second = await store.claim("worker", limit=2)
        (third,) = await store.claim("worker")
        await store.finish(second.attempt.id, AttemptState.SUCCEEDED)
        assert await store.claim("worker") == await store.claim("idle") == []
        idle, worker = sorted(await store.workers(), key=lambda one: one.name)
        assert (idle.claimed, idle.claimed_at, idle.attempt_ids) == (0, None, ())
        assert (worker.claimed, worker.claimed_at) == (3, third.attempt.started_at)
        assert worker.attempt_ids == (first.attempt.id, third.attempt.id)
        assert worker.first_seen_at == first.attempt.started_at <= worker.seen_at

    async def test_a_heartbeat_renews_the_lease(self, store: Store) -> None:
        await store.enqueue(group())
        claim = await claim_one(store, lease_seconds=0.0)
        assert await store.heartbeat("worker", [claim.attempt.id], lease_seconds=60.0) == []
        assert await store.expire() == 0

    async def test_a_heartbeat_names_attempts_that_are_not_the_worker_s(self, store: Store) -> None:
        await store.enqueue(group(3))
        mine, lost, done = await store.claim("worker", limit=3)
        await store.finish(done.attempt.id, AttemptState.SUCCEEDED)
        await store.cancel([lost.rollout.id])
        every = [one.attempt.id for one in (mine, lost, done)]
        assert await store.heartbeat("worker", every) == every[1:]
        assert await store.heartbeat("other", every[:1]) == every[:1]

    async def test_a_success_ends_attempt_and_rollout(self, store: Store) -> None:
        await store.enqueue(group())
        claim = await claim_one(store)
        output = {"answer": [1, None, "x"]}
        rollout = await store.finish(claim.attempt.id, AttemptState.SUCCEEDED, output=output)
        assert rollout.state is RolloutState.SUCCEEDED
        found, attempt = await store.attempt(claim.attempt.id)
        assert found == rollout
        assert (attempt.state, attempt.output) == (AttemptState.SUCCEEDED, output)
        assert attempt.ended_at == rollout.ended_at is not None

    async def test_finishing_again_in_the_same_way_changes_nothing(self, store: Store) -> None:
        await store.enqueue(group())
        claim = await claim_one(store)
        first = await store.finish(claim.attempt.id, AttemptState.SUCCEEDED)
        assert await store.finish(claim.attempt.id, AttemptState.SUCCEEDED) == first

    async def test_finishing_otherwise_than_before_is_stale(self, store: Store) -> None:
        await store.enqueue(group())
        claim = await claim_one(store)
        await store.finish(claim.attempt.id, AttemptState.SUCCEEDED)
        with pytest.raises(StaleAttempt, match=claim.attempt.id):
            await store.finish(claim.attempt.id, AttemptState.FAILED, failure=AGENT_FAILED)

    async def test_a_failure_goes_with_a_failed_end_and_with_no_other(self, store: Store) -> None:
        await store.enqueue(group())
        attempt = (await claim_one(store)).attempt.id
        with pytest.raises(Conflict):
            await store.finish(attempt, AttemptState.FAILED)
        with pytest.raises(Conflict):
            await store.finish(attempt, AttemptState.SUCCEEDED, failure=AGENT_FAILED)
        with pytest.raises(Conflict):
            await store.finish(attempt, AttemptState.RUNNING)

    async def test_an_agent_s_failure_is_final_by_default(self, store: Store) -> None:
        await store.enqueue(group())
        claim = await claim_one(store)
        rollout = await store.finish(claim.attempt.id, AttemptState.FAILED, failure=AGENT_FAILED)
        assert rollout.state is RolloutState.FAILED
        assert (await store.attempt(claim.attempt.id))[1].failure == AGENT_FAILED

    async def test_infrastructure_failures_have_a_limit_of_their_own(self, store: Store) -> None:
        # One timeout may be followed by a second attempt; two infrastructure failures are free.
        retry = RetryPolicy(max_attempts=2, max_infrastructure_failures=2)
        await store.enqueue(group(retry=retry))
        states: list[RolloutState] = []
        for failure in (ENGINE_FAILED, TIMED_OUT, ENGINE_FAILED, ENGINE_FAILED):
            attempt = (await claim_one(store)).attempt.id
            states.append((await store.finish(attempt, AttemptState.FAILED, failure=failure)).state)
        assert states == [RolloutState.QUEUED] * 3 + [RolloutState.FAILED]

    async def test_cancelling_ends_queued_and_running_ones(self, store: Store) -> None:
        await store.enqueue(group(3))
        done, running = await store.claim("worker", limit=2)
        await store.finish(done.attempt.id, AttemptState.SUCCEEDED)
        every = [one.id for one in group(3)]
        assert await store.cancel(every) == 2
        assert await store.cancel(every) == 0
        states = [one.state for one in await store.rollouts(RolloutQuery(ids=tuple(every)))]
        assert sorted(states) == ["cancelled", "cancelled", "succeeded"]
        attempt = (await store.attempt(running.attempt.id))[1]
        assert attempt.failure is not None
        assert attempt.failure.kind is FailureKind.CANCELLED

    async def test_a_cancelled_rollout_s_attempt_is_stale(self, store: Store) -> None:
        await store.enqueue(group())
        claim = await claim_one(store)
        await store.cancel([claim.rollout.id])
        with pytest.raises(StaleAttempt):
            await store.finish(claim.attempt.id, AttemptState.SUCCEEDED)
        assert await state_of(store, claim.rollout.id) is RolloutState.CANCELLED

    async def test_a_lease_that_ran_out_loses_the_attempt(self, store: Store) -> None:
        await store.enqueue(group())
        claim = await claim_one(store, lease_seconds=0.0)
        assert (await store.expire(), await store.expire()) == (1, 0)
        rollout, attempt = await store.attempt(claim.attempt.id)
        assert (rollout.state, attempt.state) == (RolloutState.QUEUED, AttemptState.LOST)
        assert attempt.failure is not None
        assert attempt.failure.kind is FailureKind.LOST

    async def test_time_that_ran_out_times_the_attempt_out(self, store: Store) -> None:
        await store.enqueue(group(timeout_seconds=0.0, retry=RetryPolicy(max_attempts=1)))
        claim = await claim_one(store)
        assert await store.expire() == 1
        rollout, attempt = await store.attempt(claim.attempt.id)
        assert (rollout.state, attempt.state) == (RolloutState.FAILED, AttemptState.TIMED_OUT)

    async def test_a_late_writer_is_refused(self, store: Store) -> None:
        await store.enqueue(group())
        claim = await claim_one(store, lease_seconds=0.0)
        await store.expire()
        second = await claim_one(store)
        with pytest.raises(StaleAttempt):
            await store.finish(claim.attempt.id, AttemptState.SUCCEEDED)
        assert await store.heartbeat("worker", [claim.attempt.id]) == [claim.attempt.id]
        assert (await store.attempt(second.attempt.id))[1].state is AttemptState.RUNNING

    async def test_extending_pushes_back_the_deadline(self, store: Store) -> None:
        await store.enqueue(group(timeout_seconds=0.0))
        claim = await claim_one(store)
        await store.extend([claim.attempt.id, AttemptId("a-unknown")], 60.0)
        assert await store.expire() == 0

    async def test_extending_does_not_renew_the_lease(self, store: Store) -> None:
        await store.enqueue(group())
        claim = await claim_one(store, lease_seconds=0.0)
        await store.extend([claim.attempt.id], 60.0)
        assert await store.expire() == 1

    async def test_all_leases_are_renewed_after_a_restart(self, store: Store) -> None:
        await store.enqueue(group(2))
        await store.claim("worker", limit=2, lease_seconds=0.0)
        assert await store.renew_all_leases(60.0) == 2
        assert await store.expire() == 0

    async def test_unknown_ids_are_not_found(self, store: Store) -> None:
        attempt, rollout = AttemptId("a-unknown"), RolloutId("r-unknown")
        for calling in (
            store.append([log(attempt, "e")]),
            store.finish(attempt, AttemptState.SUCCEEDED),
            store.cancel([rollout]),
            store.attempts([rollout]),
            store.attempt(attempt),
            store.events([attempt]),
            store.commit("unknown", 1),
        ):
            with pytest.raises(NotFound, match="unknown"):
                await calling

    async def test_a_new_attempt_starts_without_the_former_s_reward(self, store: Store) -> None:
        await store.enqueue(group())
        claim = await claim_one(store, lease_seconds=0.0)
        await store.append([reward(claim.attempt.id, 1.0)])
        await store.expire()
        assert (await claim_one(store)).rollout.reward is None
