"""Forks of an iteration: which are asked for, what a second start finds, and what becomes of branches that go astray.

The worker is a scripted one; answers are replayed as the gateway replays them.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from msgspec.structs import replace

from lightningrl.errors import RunError
from lightningrl.experience.forks import unforked
from lightningrl.recipe import Recipe, parse_recipe
from lightningrl.schema import (
    AttemptState,
    CallEvent,
    Cause,
    Claim,
    Diverged,
    Failure,
    FailureKind,
    ReplayOf,
    RolloutState,
    StepId,
)
from lightningrl.store.base import RolloutQuery
from lightningrl.store.sqlite import SqliteStore
from lightningrl.traces import read_ledger
from lightningrl_testkit.records import AT, call, reward
from lightningrl_verl.training.collect import Collected, collect_training

TURNS = 3
ASTRAY = Failure(FailureKind.DIVERGED, "line 1 differs: '10:02' became '17:45'")
Outcome = Callable[[Claim], str]


@pytest_asyncio.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqliteStore]:
    store = SqliteStore.open(tmp_path / "store.db")
    yield store
    await store.close()


def recipe(**algorithm: Any) -> Recipe:
    tree = {
        "name": "run",
        "agent": "a:b",
        "policies": {"policy": {"model": "m"}},
        "algorithm": {
            "iterations": 1,
            "tasks_per_iteration": 1,
            "group_size": 2,
            "credit": "vine",
            "forks": {"per_group": 1, "members": 2},
            **algorithm,
        },
    }
    return parse_recipe(tree)


def asked(claim: Claim, turn: int, **changes: Any) -> CallEvent:
    """A call that ended `turn` seconds after the first one, and took a tenth of one."""
    one = call(claim.attempt.id, f"{claim.attempt.id}-{turn}")
    return replace(one, at=AT + timedelta(seconds=turn), latency_ms=100.0, **changes)


async def works(store: SqliteStore, outcome: Outcome = lambda _: "goes on") -> None:
    """Play whatever is queued, until it is cancelled: members take three turns, branches do what `outcome` says."""
    while True:
        for claim in await store.claim("worker", wait_seconds=60.0):
            fork = claim.rollout.spec.fork
            done = "plays" if fork is None else outcome(claim)
            events = [asked(claim, turn) for turn in range(TURNS)]
            if fork is not None:
                parents = await store.calls(fork.attempt)
                at = [one.step_id for one in parents].index(StepId(str(fork.step)))
                given = [
                    replace(
                        asked(claim, turn, replay_of=ReplayOf(fork.attempt, parents[turn].id)),
                        choices=parents[turn].choices,
                    )
                    for turn in range(at)
                ]
                events = [*given, *events[at:]] if done == "goes on" else given
                if done == "diverges":
                    astray = Diverged("line 1 differs: '10:02' became '17:45'", Cause.TIME)
                    events = [asked(claim, 0, diverged=astray)]
            await store.append([*events, reward(claim.attempt.id, claim.rollout.spec.member)])
            failed = done == "diverges"
            state = AttemptState.FAILED if failed else AttemptState.SUCCEEDED
            await store.finish(claim.attempt.id, state, failure=ASTRAY if failed else None)


async def collected(
    store: SqliteStore, one: Recipe, outcome: Outcome = lambda _: "goes on"
) -> Collected:
    working = asyncio.create_task(works(store, outcome))
    collecting = asyncio.create_task(
        collect_training(store, one, [("task", {})], 1, on_progress=lambda _: None)
    )
    try:
        await asyncio.wait((working, collecting), return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            working.result()  # says what is wrong with the test's worker
        return await collecting
    finally:
        working.cancel()
        collecting.cancel()


async def test_branches_are_groups_of_their_own_and_taken_with_the_members(
    store: SqliteStore,
) -> None:
    found = await collected(store, recipe())
    metrics = found.forked.metrics
    assert (metrics["forks/asked"], metrics["forks/replayed"], metrics["forks/diverged"]) == (
        2,
        2,
        0,
    )
    taken = await store.take("run", 1, skip=found.forked.skipped)
    assert [len(group.rollouts) for group in taken] == [2, 2]
    members, branches = await read_ledger(store, "run", 1)
    assert unforked([members, branches]) == [members]
    forks = {one.rollout.spec.fork for one in branches.traces}
    assert len(forks) == 1
    (fork,) = forks
    assert fork is not None
    assert branches.group_id == f"{members.group_id}/fork/{fork.step}"
    at = [
        one.step_id for one in members.traces[0].transitions + members.traces[1].transitions
    ].index(StepId(str(fork.step))) % TURNS
    assert at in (1, 2)  # never the first call
    # Each of the two samples the calls from there on; two tokens each.
    tokens = call(fork.attempt, "x").completion_tokens
    assert metrics["forks/sampled_tokens"] == 2 * (TURNS - at) * tokens
    assert metrics["forks/saved_tokens"] == 2 * at * tokens


async def test_a_second_start_goes_on_with_the_branches_of_the_first(store: SqliteStore) -> None:
    first = await collected(store, recipe())
    before = await store.rollouts(RolloutQuery(run="run"))
    # Whatever the rule would say now: what was chosen is what the store has.
    again = await collected(store, recipe(forks={"per_group": 2, "members": 3}))
    assert await store.rollouts(RolloutQuery(run="run")) == before
    assert again.forked == first.forked


async def test_flat_groups_that_dynamic_sampling_drops_are_not_forked(store: SqliteStore) -> None:
    found = await collected(store, recipe(group_size=2, further_tasks=1, min_group=2))
    assert found.flat == {}
    every = await store.rollouts(RolloutQuery(run="run"))
    # With branches in the store a second start counts members alone.
    again = await collected(store, recipe(further_tasks=1))
    assert again.flat == {}
    assert len(every) == len(await store.rollouts(RolloutQuery(run="run"))) == 4


async def test_one_that_diverged_is_counted_and_left_out(store: SqliteStore) -> None:
    one = recipe(min_group=1, failure_reward=0.0)
    found = await collected(
        store, one, lambda claim: "goes on" if claim.rollout.spec.member else "diverges"
    )
    metrics = found.forked.metrics
    assert (metrics["forks/replayed"], metrics["forks/diverged"]) == (1, 1)
    taken = await store.take("run", 1, min_group=1, failure_reward=0.0)
    # A failure reward is for what agents do wrong: this one only did something else.
    assert [len(group.rollouts) for group in taken] == [2, 1]


async def test_where_one_ends_before_its_fork_its_group_is_skipped(store: SqliteStore) -> None:
    found = await collected(
        store, recipe(), lambda claim: "goes on" if claim.rollout.spec.member else "ends"
    )
    (skipped,) = found.forked.skipped
    assert found.forked.metrics["forks/diverged"] == 1
    taken = await store.take("run", 1, skip=found.forked.skipped)
    assert [group.group_id for group in taken] != [skipped]
    assert len(taken) == 1


async def test_an_agent_that_cannot_be_replayed_stops_the_run_until_it_is_mended(
    store: SqliteStore,
) -> None:
    with pytest.raises(RunError, match=r"none of 2 branches .*\n.*'10:02' became '17:45'"):
        await collected(store, recipe(), lambda _: "diverges")
    found = await collected(store, recipe())
    assert found.forked.metrics["forks/replayed"] == 2
    every = await store.rollouts(RolloutQuery(run="run"))
    assert {one.state for one in every} == {RolloutState.SUCCEEDED}
