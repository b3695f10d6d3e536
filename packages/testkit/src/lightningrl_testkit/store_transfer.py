"""Claims about moving a run from one store to another."""
# ruff: noqa: D102  the name of a test is its claim

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lightningrl.archive import export_run, import_run
from lightningrl.errors import ConfigError, Conflict
from lightningrl.schema import AttemptState, Failure, FailureKind, Mode
from lightningrl.store.base import Ended, RolloutQuery, Store
from lightningrl.store.sqlite import SqliteStore
from lightningrl_testkit.records import call, group, log, reward

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

    async def test_what_is_there_and_differs_is_a_conflict(
        self, store: Store, tmp_path: Path
    ) -> None:
        await fill(store)
        await export_run(store, "run", tmp_path / "run.jsonl")
        attempt = (await store.attempts([group()[0].id]))[0]
        await store.append([log(attempt.id, "later")])
        with pytest.raises(Conflict, match="differs"):
            await import_run(store, tmp_path / "run.jsonl")

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
