"""Claims about deletion and retention."""
# ruff: noqa: D102  the name of a test is its claim

from __future__ import annotations

import pytest

from lightningrl.errors import Conflict, NotFound
from lightningrl.schema import AttemptState, Claim, Mode, NewRollout, Policy, RolloutId
from lightningrl.store.base import GroupQuery, Retention, RolloutQuery, RunSummary, Store
from lightningrl_testkit.records import call, group, reward

FOREVER = 1e6
"""Seconds that no test lasts."""


async def succeed_all(store: Store, rollouts: list[NewRollout]) -> list[Claim]:
    """Enqueue `rollouts` and let each make a call and succeed with the reward 1."""
    await store.enqueue(rollouts)
    ids = [one.id for one in rollouts]
    claims = await store.claim("worker", rollout_ids=ids, limit=len(rollouts))
    for claim in claims:
        await store.append([call(claim.attempt.id, "1"), reward(claim.attempt.id, 1.0)])
        await store.finish(claim.attempt.id, AttemptState.SUCCEEDED)
    return claims


async def ids(store: Store) -> set[RolloutId]:
    """Of all rollouts that are there."""
    return {one.id for one in await store.rollouts(RolloutQuery())}


class DeletionClaims:
    """`delete_rollouts`, `delete_run`, `retain`."""

    async def test_a_deleted_rollout_is_gone_with_all_that_it_left(self, store: Store) -> None:
        gone, kept = await succeed_all(store, group(2))
        assert await store.delete_rollouts([gone.rollout.id]) == 1
        assert await ids(store) == {kept.rollout.id}
        assert (await store.summary("run")).events == {"call": 1, "reward": 1}
        assert [one.rollout.id for one in await store.ended("run")] == [kept.rollout.id]
        for reading in (store.attempt(gone.attempt.id), store.attempts([gone.rollout.id])):
            with pytest.raises(NotFound):
                await reading
        with pytest.raises(NotFound):
            await store.append([reward(gone.attempt.id, 1.0)])

    async def test_deleting_again_changes_nothing(self, store: Store) -> None:
        (gone,) = await succeed_all(store, group())
        deletions = [await store.delete_rollouts([gone.rollout.id]) for _ in range(2)]
        assert deletions == [1, 0]

    async def test_what_runs_is_not_deleted(self, store: Store) -> None:
        await store.enqueue(group(2))
        (running,) = await store.claim("worker")
        with pytest.raises(Conflict, match="cancel it first"):
            await store.delete_rollouts([group(2)[1].id, running.rollout.id])
        with pytest.raises(Conflict, match="cancel it first"):
            await store.delete_run("run")
        assert len(await ids(store)) == 2
        await store.cancel([running.rollout.id])
        assert await store.delete_run("run") == 2

    async def test_what_an_iteration_took_stays_until_it_is_committed(self, store: Store) -> None:
        claims = await succeed_all(store, group(2))
        taken = await store.take("run", 1)
        for deleting in (store.delete_rollouts([claims[0].rollout.id]), store.delete_run("run")):
            with pytest.raises(Conflict, match="iteration 1"):
                await deleting
        assert await store.retain(Retention(max_age_seconds=0.0)) == 0
        assert await store.take("run", 1) == taken
        await store.commit("run", 1)
        assert await store.delete_rollouts([claims[0].rollout.id]) == 1
        (entry,) = await store.ledger("run")
        assert entry.rollout_ids == (claims[1].rollout.id,)

    async def test_a_run_goes_with_ledger_policies_and_resources(self, store: Store) -> None:
        await succeed_all(store, group(2) + group(1, run="other"))
        await store.take("run", 1)
        await store.commit("run", 1)
        for run in ("run", "other"):
            await store.put_policy(Policy(name="policy", run=run, version=0, endpoints=()))
            await store.put_resource(run, "prompt", "a")
        assert await store.delete_run("run") == 2
        assert await store.delete_run("run") == 0
        assert await store.runs() == ["other"]
        assert await store.ledger("run") == await store.resources("run") == []
        assert await store.policies("run") == []
        assert await store.summary("run") == RunSummary("run", {}, {}, {})
        assert len(await store.resources("other")) == len(await store.policies("other")) == 1

    async def test_after_a_deletion_the_same_rollouts_run_anew(self, store: Store) -> None:
        await succeed_all(store, group(2))
        (before,) = await store.ended("run", limit=1)
        await store.delete_run("run")
        claims = await succeed_all(store, group(2))
        # Nothing of the former attempts is taken for the new ones': calls are whole, cursors go on.
        for claim in claims:
            ((*events,),) = await store.events([claim.attempt.id])
            assert events == [call(claim.attempt.id, "1"), reward(claim.attempt.id, 1.0)]
        after = await store.ended("run", after=before.cursor)
        assert [one.rollout.id for one in after] == [claim.rollout.id for claim in claims]

    async def test_what_comes_after_a_deletion_is_after_every_cursor(self, store: Store) -> None:
        first, last = group(task="first"), group(task="last")
        await store.enqueue(first + last)
        cursor = (await store.dump("run"))[-1].cursor
        groups = (await store.groups(GroupQuery(run="run")))[-1].cursor
        await store.delete_rollouts([last[0].id])
        await store.enqueue(group(task="new"))
        (dumped,) = await store.dump("run", after=cursor)
        (found,) = await store.groups(GroupQuery(run="run", after=groups))
        assert dumped.rollout.spec.task_id == found.task_id == "new"
        assert dumped.cursor > cursor

    async def test_retention_is_by_age_and_mode(self, store: Store) -> None:
        live = await succeed_all(store, group(60, mode=Mode.LIVE))
        val = await succeed_all(store, group(2, mode=Mode.VAL))
        await store.enqueue(group(1, mode=Mode.LIVE, task="queued"))
        assert await store.retain(Retention()) == 0
        assert await store.retain(Retention(max_age_seconds=FOREVER)) == 0
        rule = Retention(modes=(Mode.LIVE,), max_age_seconds=0.0)
        assert await store.retain(rule) == len(live)
        queued = group(1, mode=Mode.LIVE, task="queued")[0].id
        assert await ids(store) == {queued, *(one.rollout.id for one in val)}

    async def test_training_is_kept_until_it_is_committed(self, store: Store) -> None:
        await succeed_all(store, group(2))
        await succeed_all(store, group(2, iteration=2))
        await store.take("run", 1)
        await store.commit("run", 1)
        assert await store.retain(Retention(max_age_seconds=0.0)) == 2
        assert await ids(store) == {one.id for one in group(2, iteration=2)}

    async def test_retention_by_size_deletes_until_the_rest_fits(self, store: Store) -> None:
        await succeed_all(store, group(3, mode=Mode.LIVE))
        assert await store.retain(Retention(max_bytes=1 << 40)) == 0
        assert await store.retain(Retention(max_bytes=0)) == 3
        assert await ids(store) == set()
