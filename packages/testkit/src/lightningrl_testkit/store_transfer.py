"""Claims about moving a run from one store to another."""
# ruff: noqa: D102  the name of a test is its claim

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from lightningrl.archive import export_run, import_run
from lightningrl.archive.records import Loader, records_of
from lightningrl.errors import ConfigError, Conflict, NotFound
from lightningrl.schema import (
    AttemptState,
    Claim,
    Failure,
    FailureKind,
    Mode,
    NewRollout,
    RolloutState,
)
from lightningrl.store.base import Ended, Retention, RolloutDump, RolloutQuery, Store
from lightningrl.store.sqlite import SqliteStore
from lightningrl_testkit.records import call, group, log, reward
from lightningrl_testkit.store_live import begin, live

LOST = Failure(FailureKind.LOST, "gone")
AGENT_FAILED = Failure(FailureKind.AGENT, "no")
ROLLOUTS = 11
"""How many `fill` makes."""


async def fill(store: Store) -> None:
    """A run with a rollout in every state, retries, late rewards, resources and a ledger."""
    await store.put_resource("run", "prompt", {"system": "Be brief."})
    await store.put_resource("run", "prompt", "shorter", ident="two")
    await store.enqueue(group(3, resources={"prompt": 1}))
    first, second, third = await store.claim("worker", limit=3)
    for turn in range(4):  # a conversation, of which the file has differences
        request = b'{"messages":[%s]}' % (b'"what was said in this turn"' * (turn + 1))
        prompt = range(40 * (turn + 1))
        await store.append([call(first.attempt.id, str(turn), prompt=prompt, request=request)])
    await store.append([reward(third.attempt.id, 0.5), log(third.attempt.id, "a line")])
    await store.finish(third.attempt.id, AttemptState.SUCCEEDED, output={"answer": [1, None, 2.5]})
    await store.append([reward(first.attempt.id, 1.0)])
    await store.finish(first.attempt.id, AttemptState.SUCCEEDED)
    await store.finish(second.attempt.id, AttemptState.FAILED, failure=AGENT_FAILED)
    await store.take("run", 1)
    await store.commit("run", 1)
    await store.append([reward(third.attempt.id, 9.0, revision=1)])
    await store.enqueue(group(3, iteration=2))
    lost, running, failing = await store.claim("worker", limit=3, lease_seconds=600.0)
    await store.append([call(lost.attempt.id, "1"), log(running.attempt.id, "still here")])
    await store.finish(lost.attempt.id, AttemptState.LOST, failure=LOST)
    await store.finish(failing.attempt.id, AttemptState.FAILED, failure=AGENT_FAILED)
    await store.retry([failing.rollout.id])
    await store.enqueue(group(1, mode=Mode.LIVE, await_rewards=("user",)))
    await store.enqueue(group(2, task="last", mode=Mode.VAL))
    await store.cancel([group(2, task="last", mode=Mode.VAL)[0].id])
    await store.claim("other worker", limit=2)
    (live,) = group(1, mode=Mode.LIVE, await_rewards=("user",))
    (claim,) = await store.claim("service", rollout_ids=[live.id])
    await store.append([reward(claim.attempt.id, 0.25)])
    await store.finish(claim.attempt.id, AttemptState.SUCCEEDED)  # awaits a reward
    (given,) = group(1, mode=Mode.LIVE, task="given")
    await store.enqueue([given])
    (claim,) = await store.claim("service", rollout_ids=[given.id])
    await store.append([reward(claim.attempt.id, 0.75)])
    await store.finish(claim.attempt.id, AttemptState.SUCCEEDED)
    await store.give_live("run", 3, [given.id])
    await store.take("run", 3)
    (impatient,) = group(1, mode=Mode.VAL, await_rewards=("user",), await_seconds=0.0)
    await store.enqueue([impatient])
    (claim,) = await store.claim("worker", rollout_ids=[impatient.id])
    await store.finish(claim.attempt.id, AttemptState.SUCCEEDED)
    await store.expire()


async def reads(store: Store) -> dict[str, Any]:
    """Everything that the contract reads of the run."""
    rollouts = await store.rollouts(RolloutQuery(run="run"))
    attempts = await store.attempts([one.id for one in rollouts])
    ended: list[Ended] = await store.ended("run")
    return {
        "rollouts": rollouts,
        "attempts": attempts,
        "events": await store.events([one.id for one in attempts]),
        "ended": [one.rollout.id for one in ended],
        "summary": await store.summary("run"),
        "ledger": await store.ledger("run"),
        "taken": await store.take("run", 1),
        "resources": await store.resources("run", name="prompt"),
        "progress": await store.progress("run", Mode.TRAIN, 2),
    }


async def enqueued(store: Store, rollouts: list[NewRollout]) -> list[Claim]:
    """Enqueue and claim them all."""
    await store.enqueue(rollouts)
    return await store.claim("worker", limit=len(rollouts))


async def succeed(store: Store, rollouts: list[NewRollout]) -> None:
    """Run them all to their success, rewarded with 1."""
    for claim in await enqueued(store, rollouts):
        await store.append([reward(claim.attempt.id, 1.0)])
        await store.finish(claim.attempt.id, AttemptState.SUCCEEDED)


def with_attempt(dumped: RolloutDump, **changes: Any) -> RolloutDump:
    """`dumped` with other fields of its one attempt."""
    (one,) = dumped.attempts
    return replace(dumped, attempts=(replace(one, attempt=replace(one.attempt, **changes)),))


class TransferClaims:
    """`dump` and `load`, through a run's file."""

    async def test_a_run_is_read_the_same_where_it_was_loaded(
        self, store: Store, tmp_path: Path
    ) -> None:
        origin = SqliteStore.open(tmp_path / "origin.db")
        await fill(origin)
        assert await export_run(origin, "run", tmp_path / "run.jsonl") == ROLLOUTS
        run, new = await import_run(store, tmp_path / "run.jsonl")
        assert (run, new > 9) == ("run", True)
        assert await reads(store) == await reads(origin)
        # And the other way: what this store dumps is the same file.
        await export_run(store, "run", tmp_path / "again.jsonl")
        assert (tmp_path / "again.jsonl").read_bytes() == (tmp_path / "run.jsonl").read_bytes()
        await origin.close()

    async def test_the_loaded_run_goes_on_where_it_stood(
        self, store: Store, tmp_path: Path
    ) -> None:
        origin = SqliteStore.open(tmp_path / "origin.db")
        await fill(origin)
        await export_run(origin, "run", tmp_path / "run.jsonl")
        await import_run(store, tmp_path / "run.jsonl")
        for one in (origin, store):
            (awaiting,) = await one.rollouts(RolloutQuery(mode=Mode.LIVE, iteration=0))
            (attempt,) = await one.attempts([awaiting.id])
            await one.append([reward(attempt.id, 1.0, name="user")])
            claims = await one.claim("next", limit=9)
            assert [claim.rollout.spec.task_id for claim in claims] == ["last"]
        assert (await reads(store))["ended"] == (await reads(origin))["ended"]
        await origin.close()

    async def test_loading_again_changes_nothing(self, store: Store, tmp_path: Path) -> None:
        await fill(store)
        before = await reads(store)
        await export_run(store, "run", tmp_path / "run.jsonl")
        assert await import_run(store, tmp_path / "run.jsonl") == ("run", 0)
        assert await reads(store) == before

    async def test_what_is_there_and_differs_is_a_conflict(self, store: Store) -> None:
        (claim,) = await enqueued(store, group())
        await store.append([log(claim.attempt.id, "1"), log(claim.attempt.id, "2")])
        (dumped,) = await store.dump("run")
        (attempt,) = dumped.attempts
        rollout, events = dumped.rollout, attempt.events
        later = datetime.timedelta(seconds=1)
        for other in (
            replace(dumped, rollout=replace(rollout, created_at=rollout.created_at + later)),
            replace(dumped, rollout=replace(rollout, spec=replace(rollout.spec, variant="b"))),
            replace(dumped, rollout=replace(rollout, forgiven=1)),
            replace(dumped, rollout=replace(rollout, state=RolloutState.CANCELLED)),
            replace(dumped, attempts=(attempt, attempt)),
            replace(dumped, attempts=(replace(attempt, events=events[1:]),)),
            replace(dumped, attempts=(replace(attempt, events=(*events, events[0])),)),
            with_attempt(dumped, worker="other"),
            with_attempt(dumped, state=AttemptState.SUCCEEDED),
        ):
            with pytest.raises(Conflict, match="differs"):
                await store.load(rollouts=[other])
        assert await store.load(rollouts=[dumped]) == 0

    async def test_a_load_is_done_again_where_the_store_went_on(
        self, store: Store, tmp_path: Path
    ) -> None:
        origin = SqliteStore.open(tmp_path / "origin.db")
        await fill(origin)
        await export_run(origin, "run", tmp_path / "run.jsonl")
        await origin.close()
        await import_run(store, tmp_path / "run.jsonl")
        for one in await store.rollouts(RolloutQuery(run="run")):
            for attempt in await store.attempts([one.id]):
                await store.append([log(attempt.id, "later")])
                if attempt.state is AttemptState.RUNNING:
                    await store.heartbeat(attempt.worker, [attempt.id], lease_seconds=900.0)
                    await store.extend([attempt.id], 5.0)
                    await store.finish(attempt.id, AttemptState.SUCCEEDED, output="late")
        await store.cancel([one.id for one in group(2, task="last", mode=Mode.VAL)])
        before = await reads(store)
        assert await import_run(store, tmp_path / "run.jsonl") == ("run", 0)
        assert await reads(store) == before

    async def test_what_was_tried_again_since_is_not_completed_by_a_repeated_load(
        self, store: Store
    ) -> None:
        (claim,) = await enqueued(store, group(1, mode=Mode.VAL, await_rewards=("user",)))
        await store.finish(claim.attempt.id, AttemptState.FAILED, failure=AGENT_FAILED)
        dumped, ids = await store.dump("run"), [claim.rollout.id]
        await store.retry(ids)
        assert await store.load(rollouts=dumped, completed=ids) == 0
        (again,) = await store.claim("worker")
        await store.finish(again.attempt.id, AttemptState.SUCCEEDED)
        assert await store.load(rollouts=dumped, completed=ids) == 0
        (found,) = await store.rollouts(RolloutQuery())
        assert not found.complete  # it awaits a reward of its second attempt
        await store.append([reward(again.attempt.id, 1.0, name="user")])
        assert [one.rollout.id for one in await store.ended("run")] == ids

    async def test_a_live_rollout_is_not_trained_twice_whatever_is_repeated(
        self, store: Store
    ) -> None:
        begun = await begin(store, live("a"))
        early = await store.dump("run")
        await store.append([reward(begun.attempt.id, 1.0)])
        await store.finish(begun.attempt.id, AttemptState.SUCCEEDED)
        served, dumped = begun.rollout.id, await store.dump("run")
        await store.give_live("run", 1, [served])
        assert await store.load(rollouts=dumped, completed=[served]) == 0
        await store.take("run", 1)
        await store.commit("run", 1)
        assert await store.delete_rollouts([served]) == 1
        assert await store.enqueue([live("a")]) == 0
        assert await store.load(rollouts=early) == 0
        assert await store.rollouts(RolloutQuery()) == []
        assert await store.load(rollouts=dumped, completed=[served]) == 2
        assert await store.load(rollouts=dumped, completed=[served]) == 0
        with pytest.raises(Conflict, match="iteration 1 was given it"):
            await store.give_live("run", 2, [served])
        assert await store.take("run", 2) == []

    async def test_what_the_ledger_says_since_is_loaded_and_what_it_says_otherwise_refused(
        self, store: Store, tmp_path: Path
    ) -> None:
        origin = SqliteStore.open(tmp_path / "origin.db")
        await succeed(origin, group(2))
        await origin.take("run", 1)
        await export_run(origin, "run", tmp_path / "taken.jsonl")
        await import_run(store, tmp_path / "taken.jsonl")
        (entry,) = await store.ledger("run")
        for other in (
            replace(entry, status="skipped", members=()),
            replace(entry, members=entry.members[:1]),
            replace(entry, members=(replace(entry.members[0], reward=0.5), entry.members[1])),
        ):
            with pytest.raises(Conflict, match="differs"):
                await store.load(ledger=[other])
        await origin.commit("run", 1)
        await export_run(origin, "run", tmp_path / "committed.jsonl")
        assert await import_run(store, tmp_path / "committed.jsonl") == ("run", 1)
        assert await store.ledger("run") == await origin.ledger("run")
        assert await import_run(store, tmp_path / "taken.jsonl") == ("run", 0)
        assert [one.committed for one in await store.ledger("run")] == [True]
        await origin.close()

    async def test_what_was_trained_and_deleted_comes_back_with_its_place_in_the_ledger(
        self, store: Store, tmp_path: Path
    ) -> None:
        await succeed(store, group(2))
        taken = await store.take("run", 1)
        await store.commit("run", 1)
        await export_run(store, "run", tmp_path / "run.jsonl")
        await store.delete_rollouts([group(2)[0].id])
        await export_run(store, "run", tmp_path / "later.jsonl")
        # The rollout, its place in the order of completion, its place in the ledger.
        assert await import_run(store, tmp_path / "run.jsonl") == ("run", 3)
        assert await store.take("run", 1) == taken
        assert await import_run(store, tmp_path / "later.jsonl") == ("run", 0)
        assert await store.take("run", 1) == taken

    async def test_retention_beside_an_import_breaks_nothing(
        self, store: Store, tmp_path: Path
    ) -> None:
        origin = SqliteStore.open(tmp_path / "origin.db")
        await succeed(origin, [*group(2, task="a"), *group(2, task="b")])
        await origin.take("run", 1)
        await origin.commit("run", 1)
        loader = Loader(store)
        async for record in records_of(origin, "run"):
            await loader.add(record)
            await store.retain(Retention(max_age_seconds=0.0))
        await loader.end()
        assert await store.ledger("run") == await origin.ledger("run")
        await origin.close()

    async def test_what_is_deleted_during_an_export_is_in_no_ledger(
        self, store: Store, tmp_path: Path
    ) -> None:
        origin = SqliteStore.open(tmp_path / "origin.db")
        await origin.put_resource("run", "prompt", "first")
        for iteration in (1, 2, 3):
            await succeed(origin, group(2, iteration=iteration))
            await origin.take("run", iteration)
        await origin.commit("run", 1)
        records, loader = records_of(origin, "run"), Loader(store)
        await loader.add(await anext(records))  # the ledger was read
        await origin.roll_back("run", after=2)
        await origin.delete_rollouts([group(2, iteration=one)[0].id for one in (1, 3)])
        async for record in records:
            await loader.add(record)
        await loader.end()
        found = [(one.iteration, len(one.members)) for one in await store.ledger("run")]
        assert found == [(1, 1), (2, 2)]
        await origin.close()

    async def test_what_is_tried_again_during_an_export_arrives_as_it_was_read(
        self, store: Store, tmp_path: Path
    ) -> None:
        origin = SqliteStore.open(tmp_path / "origin.db")
        for claim in await enqueued(origin, group(2)):
            await origin.finish(claim.attempt.id, AttemptState.FAILED, failure=AGENT_FAILED)
        records, loader = records_of(origin, "run"), Loader(store)
        await loader.add(await anext(records))  # both are read
        await origin.retry([group(2)[0].id])
        async for record in records:
            await loader.add(record)
        await loader.end()
        assert [one.complete for one in await store.rollouts(RolloutQuery())] == [True, True]
        assert await store.take("run", 1) == []
        await origin.close()

    async def test_what_is_put_and_pinned_during_an_export_is_in_the_file(
        self, store: Store, tmp_path: Path
    ) -> None:
        origin = SqliteStore.open(tmp_path / "origin.db")
        await origin.put_resource("run", "prompt", "first")
        records = records_of(origin, "run")
        loader = Loader(store)
        await loader.add(await anext(records))
        second = await origin.put_resource("run", "prompt", "second")
        await origin.enqueue(group(2, resources={"prompt": 2}))
        async for record in records:
            await loader.add(record)
        assert await loader.end() == 4  # two versions, two rollouts
        (claim,) = await store.claim("worker")
        assert claim.resources == (second,)
        await origin.close()

    async def test_a_rollout_is_not_loaded_without_what_it_is_pinned_to(
        self, store: Store, tmp_path: Path
    ) -> None:
        origin = SqliteStore.open(tmp_path / "origin.db")
        pinned = await origin.put_resource("run", "prompt", "first")
        await origin.enqueue(group(resources={"prompt": 1}))
        dumped = await origin.dump("run")
        with pytest.raises(NotFound, match="version 1 of the resource 'prompt'"):
            await store.load(rollouts=dumped)
        assert await store.runs() == []
        assert await store.load(rollouts=dumped, resources=[pinned]) == 2
        await origin.close()

    async def test_a_file_that_is_not_whole_is_refused_before_anything_is_loaded(
        self, store: Store, tmp_path: Path
    ) -> None:
        origin = SqliteStore.open(tmp_path / "origin.db")
        await fill(origin)
        await origin.close()
        path = tmp_path / "run.jsonl"
        origin = SqliteStore.open(tmp_path / "origin.db", read_only=True)
        await export_run(origin, "run", path)
        await origin.close()
        whole = path.read_bytes()
        for broken, told in (
            (whole[:-20], "not whole"),
            (whole[: whole.rindex(b"\n", 0, -1) + 1], "not whole"),
            (b"", "no run"),
            (b"{}\n", "no line of a run"),
            (whole.replace(b'"version":1', b'"version":99', 1), "version 99"),
        ):
            path.write_bytes(broken)
            with pytest.raises(ConfigError, match=told):
                await import_run(store, path)
        with pytest.raises(ConfigError, match="can't read"):
            await import_run(store, tmp_path / "missing.jsonl")
        assert await store.runs() == []
