"""Which live rollouts an iteration is given: by reward, age of the weights, tokens; counted and once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from msgspec.structs import replace

from lightningrl.errors import ConfigError
from lightningrl.experience.trained_calls import STALE
from lightningrl.recipe import LoadedRecipe, Recipe, parse_recipe
from lightningrl.schema import (
    AttemptState,
    CallEvent,
    Failure,
    FailureKind,
    Mode,
    RolloutId,
    Sampling,
)
from lightningrl.store.sqlite import SqliteStore
from lightningrl_testkit.records import call, group, reward
from lightningrl_verl.start.folder import RunFolder
from lightningrl_verl.start.preflight import check
from lightningrl_verl.start.site import site
from lightningrl_verl.training.live import OTHER_SAMPLING, CollectedLive, collect_live
from lightningrl_verl.training.rows import NOTHING_TRAINABLE

FAILED = Failure(FailureKind.AGENT, "ValueError: no")


@pytest_asyncio.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqliteStore]:
    store = SqliteStore.open(tmp_path / "store.db")
    yield store
    await store.close()


def recipe(*, live: dict[str, Any] | None = None, **algorithm: Any) -> Recipe:
    keys = {"iterations": 9, "tasks_per_iteration": 0, "group_size": 1, **algorithm}
    return parse_recipe(
        {
            "name": "run",
            "agent": "a:b",
            "live": live or {"min_rollouts": 1},
            "policies": {
                "policy": {"model": "m", "train_agents": ["solver"]},
                "other": {"url": "http://127.0.0.1:9/v1", "trainable": False},
            },
            "algorithm": keys,
        }
    )


def by(agent: str, version: int, policy: str = "policy", name: str = "1") -> dict[str, Any]:
    """Who made a call, and which weights of which policy answered it."""
    versions = {"version_start": version, "version_end": version}
    return {"agent": agent, "policy": policy, "name": name, **versions}


async def serve(
    store: SqliteStore,
    name: str,
    *calls: dict[str, Any],
    value: float | None = 1.0,
    sampling: Sampling | None = None,
    failure: Failure | None = None,
) -> RolloutId:
    """A live rollout from its beginning to its end; with `value=None` unrewarded."""
    (spec,) = group(mode=Mode.LIVE, task=name)
    await store.enqueue([replace(spec, sampling=sampling)])
    (claim,) = await store.claim("service", rollout_ids=[spec.id])
    events: list[CallEvent] = []
    for fields in calls:
        fields = dict(fields)
        events.append(replace(call(claim.attempt.id, fields.pop("name")), **fields))
    await store.append(events)
    if value is not None:
        await store.append([reward(claim.attempt.id, value)])
    state = AttemptState.SUCCEEDED if failure is None else AttemptState.FAILED
    await store.finish(claim.attempt.id, state, failure=failure)
    return spec.id


async def collected(
    store: SqliteStore, one: Recipe, iteration: int = 1, version: int = 5
) -> CollectedLive:
    return await collect_live(
        store, one, {"policy": version}, iteration, on_progress=lambda _: None
    )


async def taken(store: SqliteStore, found: CollectedLive, iteration: int = 1) -> list[RolloutId]:
    groups = await store.take("run", iteration, skip=found.skipped)
    return [one.rollout.id for group in groups for one in group.rollouts]


async def test_what_is_stale_or_has_nothing_to_train_is_skipped_and_counted(
    store: SqliteStore,
) -> None:
    fresh = [await serve(store, "exactly at the bound", by("solver", 3), value=0.5)]
    await serve(store, "too old", by("solver", 2))
    await serve(store, "one of its calls too old", by("solver", 5), by("solver", 2, name="2"))
    fresh.append(
        await serve(
            store,
            "only calls that are not trained are too old",
            by("solver", 4),
            by("checker", 0, name="2"),
            by("solver", 0, "other", name="3"),
        )
    )
    await serve(store, "no call")
    await serve(store, "no call that is trained", by("checker", 5))
    await serve(store, "sampled otherwise", by("solver", 5), sampling=Sampling(temperature=0.5))
    await serve(store, "unrewarded", by("solver", 5), value=None)
    await serve(store, "failed", by("solver", 5), failure=FAILED)
    found = await collected(store, recipe(max_staleness=2))
    assert await taken(store, found) == fresh
    assert found.metrics == {
        "live/rollouts": 2,
        "live/reward": 0.75,  # (0.5 + 1) / 2
        "live/skipped_by_reason": {STALE: 2, NOTHING_TRAINABLE: 2, OTHER_SAMPLING: 1},
        "live/waiting": 0,
        "live/unrewarded": 1,
        "live/failed": 1,
    }
    # All that was looked at is in the ledger; the others may still be rewarded.
    statuses = [one.status for one in await store.ledger("run")]
    assert (statuses.count("taken"), statuses.count("skipped")) == (2, 5)


async def test_an_iteration_waits_for_enough_and_late_feedback_counts(store: SqliteStore) -> None:
    one = await serve(store, "a", by("solver", 5))
    late = await serve(store, "b", by("solver", 5), value=None)
    waiting = asyncio.create_task(collected(store, recipe(live={"min_rollouts": 2})))
    (attempt,) = await store.attempts([late])
    await asyncio.sleep(0)  # it has looked, or will: either way it finds both
    assert not waiting.done()
    await store.append([reward(attempt.id, -1.0)])
    found = await waiting
    assert (await taken(store, found), found.metrics["live/reward"]) == ([one, late], 0.0)


async def test_what_an_iteration_has_no_room_for_waits_for_the_next(store: SqliteStore) -> None:
    ids = [await serve(store, name, by("solver", 5)) for name in "abc"]
    some = recipe(live={"min_rollouts": 1, "max_rollouts": 2}, max_staleness=1)
    first = await collected(store, some)
    assert (await taken(store, first), first.metrics["live/waiting"]) == (ids[:2], 1)
    second = await collected(store, some, iteration=2, version=6)
    assert await taken(store, second, 2) == ids[2:]


async def test_a_second_start_finds_the_same_set_whatever_arrived_since(
    store: SqliteStore,
) -> None:
    await serve(store, "old", by("solver", 0))
    kept = await serve(store, "a", by("solver", 5))
    before = await collected(store, recipe())
    first = await taken(store, before)
    await serve(store, "b", by("solver", 5))
    await store.roll_back("run", after=0)
    again = await collected(store, recipe())
    assert again.skipped == before.skipped
    assert await taken(store, again) == first == [kept]


@pytest.mark.parametrize("moment", ["attempts", "events", "give_live"])
async def test_what_is_deleted_while_an_iteration_chooses_is_not_given(
    store: SqliteStore, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    gone, kept = [await serve(store, name, by("solver", 5)) for name in "ab"]
    does = getattr(store, moment)

    async def deletes_first(*arguments: Any) -> Any:
        monkeypatch.undo()
        await store.delete_rollouts([gone])
        return await does(*arguments)

    monkeypatch.setattr(store, moment, deletes_first)
    found = await collected(store, recipe())
    assert await taken(store, found) == [kept]


async def test_failures_are_trained_if_the_recipe_rewards_them(store: SqliteStore) -> None:
    failed = await serve(store, "failed", by("solver", 5), value=None, failure=FAILED)
    found = await collected(store, recipe(failure_reward=-1.0))
    assert found.metrics["live/reward"] == -1.0
    (of_group,) = await store.take("run", 1, skip=found.skipped, failure_reward=-1.0)
    assert [(one.rollout.id, one.reward) for one in of_group.rollouts] == [(failed, -1.0)]


async def test_a_run_without_the_key_that_its_recipe_names_is_not_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OF_THE_SERVICE", raising=False)
    one = recipe(live={"min_rollouts": 1, "key": "OF_THE_SERVICE"})
    with pytest.raises(ConfigError, match=r"live\.key: the variable 'OF_THE_SERVICE' is not set"):
        async with site(LoadedRecipe(one, tmp_path / "r.yaml"), (), RunFolder(tmp_path)):
            pass


@pytest.mark.parametrize(
    ("tasks", "data", "told"),
    [
        (0, {"train": {"source": "t.jsonl"}}, "nothing would use it"),
        (1, {}, r"needs 'data\.train'"),
    ],
)
def test_training_tasks_are_given_just_where_iterations_have_some(
    tasks: int, data: dict[str, Any], told: str, tmp_path: Path
) -> None:
    keys = {"tasks_per_iteration": tasks, "credit_args": {"normalise": "reinforce++"}}
    tree = {
        "name": "run",
        "agent": "a:b",
        "data": data,
        "live": {"min_rollouts": 1},
        "gateway": {"port": 8700},
        "policies": {"policy": {"tiny": "lightningrl_bench_math.policy:tiny_spec"}},
        "algorithm": {"iterations": 1, "group_size": 1, "min_group": 1, **keys},
        "optimiser": {"learning_rate": 0.1},
    }
    with pytest.raises(ConfigError, match=told):
        check(LoadedRecipe(parse_recipe(tree), tmp_path / "r.yaml"))
