"""What the store holds of attempts becomes groups for credit assigners and records for people."""

from collections.abc import AsyncGenerator
from pathlib import Path

import pytest
import pytest_asyncio
from msgspec import structs

from lightningrl.credit import broadcast
from lightningrl.errors import StoreError
from lightningrl.experience.transition import Transition
from lightningrl.schema import (
    AttemptId,
    AttemptState,
    Claim,
    Failure,
    FailureKind,
    Mode,
    RetryPolicy,
    RolloutId,
    StepId,
    StepKind,
)
from lightningrl.store import RolloutQuery
from lightningrl.store.sqlite import SqliteStore
from lightningrl.traces import (
    agent_path,
    late_rewards,
    outline,
    read_attempts,
    read_ledger,
    read_parts,
    read_traces,
)
from lightningrl_testkit.records import AT, call, group, reward


@pytest_asyncio.fixture
async def store(tmp_path: Path) -> AsyncGenerator[SqliteStore]:
    store = SqliteStore.open(tmp_path / "store.db")
    yield store
    await store.close()


async def succeed(store: SqliteStore, claim: Claim, value: float | None, calls: int = 1) -> None:
    attempt = claim.attempt.id
    for number in range(calls):
        await store.append([call(attempt, f"c{number}")])
    if value is not None:
        await store.append([reward(attempt, value)])
    await store.finish(attempt, AttemptState.SUCCEEDED)


async def fail(store: SqliteStore, claim: Claim, kind: FailureKind = FailureKind.AGENT) -> None:
    failure = Failure(kind, "it broke")
    await store.finish(claim.attempt.id, AttemptState.FAILED, failure=failure)


async def claim(store: SqliteStore, count: int) -> list[Claim]:
    claims = await store.claim("worker", limit=count)
    return sorted(claims, key=lambda one: one.rollout.spec.member)


async def test_what_was_taken_becomes_groups_in_the_same_order(store: SqliteStore) -> None:
    await store.enqueue(group(2, task="a") + group(2, task="b"))
    claims = await store.claim("worker", limit=4)
    for number, one in enumerate(claims):
        await succeed(store, one, float(number), calls=number)
    taken = await store.take("run", 1)
    groups = await read_traces(store, taken)
    assert [one.group_id for one in groups] == [one.group_id for one in taken]
    assert [[trace.reward for trace in one.traces] for one in groups] == [[0.0, 1.0], [2.0, 3.0]]
    assert [[len(trace.calls) for trace in one.traces] for one in groups] == [[0, 1], [2, 3]]
    for one, given in zip(groups, taken, strict=True):
        assert [trace.rollout.id for trace in one.traces] == [m.rollout.id for m in given.rollouts]


async def test_parts_of_rewards_are_told_apart_and_averaged_over_those_that_have_them(
    store: SqliteStore,
) -> None:
    await store.enqueue(group(3))
    first, second, third = await claim(store, 3)
    await store.append([reward(first.attempt.id, 1.0, name="format", revision=0)])
    await store.append([reward(first.attempt.id, 0.0, name="format", revision=1)])
    await store.append([reward(second.attempt.id, 1.0, name="format")])
    await store.append([reward(second.attempt.id, 0.5, name="accuracy")])
    for one in (first, second):
        await succeed(store, one, 1.0)
    await store.append([reward(third.attempt.id, 0.0, name="format")])
    await fail(store, third)
    [taken] = await read_traces(store, await store.take("run", 1, min_group=2))
    assert [trace.reward for trace in taken.traces] == [1.0, 1.0]
    assert [trace.parts for trace in taken.traces] == [
        {"format": 0.0},
        {"format": 1.0, "accuracy": 0.5},
    ]
    ids = [one.rollout.id for one in (first, second, third)]
    assert await read_parts(store, ids) == {"accuracy": 0.5, "format": 0.5}
    assert await read_parts(store, []) == {}


async def test_groups_go_straight_into_a_credit_assigner(store: SqliteStore) -> None:
    await store.enqueue(group(2))
    high, low = await claim(store, 2)
    await succeed(store, high, 1.0, calls=2)
    await succeed(store, low, 0.0, calls=1)
    groups = await read_traces(store, await store.take("run", 1))
    assert broadcast(groups, normalise="mean") == [[[0.5, 0.5], [-0.5]]]


async def test_nothing_taken_gives_no_groups(store: SqliteStore) -> None:
    assert await read_traces(store, []) == []


async def test_the_ledger_gives_what_take_gave(store: SqliteStore) -> None:
    await store.enqueue(group(3))
    one, two, three = await claim(store, 3)
    await succeed(store, one, 1.0)
    await fail(store, two)
    await succeed(store, three, 0.0)
    taken = await read_traces(store, await store.take("run", 1))
    (again,) = await read_ledger(store, "run", 1)
    assert [trace.rollout.id for trace in again.traces] == [one.rollout.id, three.rollout.id]
    assert [t.attempt for t in again.traces] == [t.attempt for t in taken[0].traces]
    assert [t.reward for t in again.traces] == [1.0, 0.0]


async def test_rewards_after_the_take_are_told_and_not_trained(store: SqliteStore) -> None:
    await store.enqueue(group(2))
    for one in await claim(store, 2):
        await succeed(store, one, 1.0, calls=1)
    taken = await store.take("run", 1)
    before = await read_traces(store, taken)
    attempt = taken[0].rollouts[0].attempt.id
    step = before[0].traces[0].transitions[0].step_id
    late = [reward(attempt, 5.0, revision=7), reward(attempt, 3.0, name="reward", step=step)]
    await store.append(late)
    for groups in (await read_traces(store, taken), await read_ledger(store, "run", 1)):
        found = groups[0].traces[0]
        assert (found.reward, found.rollout.reward, found.transitions[0].reward) == (1.0, 1.0, None)
    (first, second) = await read_attempts(store, await store.rollouts(RolloutQuery()))
    entries = await store.ledger("run")
    assert [late_rewards(entries, one[0]) for one in (first, second)] == [late, []]


async def test_what_was_skipped_or_not_taken_yet_is_no_group(store: SqliteStore) -> None:
    await store.enqueue(group(2, task="a") + group(2, task="b", iteration=2))
    for one in await store.claim("worker", limit=4):
        await fail(store, one)
    assert await store.take("run", 1) == []  # skipped
    assert await read_ledger(store, "run", 1) == []
    assert await read_ledger(store, "run", 2) == []


async def test_a_ledger_that_the_store_contradicts_is_an_error(
    store: SqliteStore, tmp_path: Path
) -> None:
    await store.enqueue(group(2))
    for one in await claim(store, 2):
        await succeed(store, one, 1.0)
    await store.take("run", 1)
    forged = ForgedStore(store)
    with pytest.raises(StoreError, match=r"gives rollout 'r-.*' to iteration 1, but the store"):
        await read_ledger(forged, "run", 1)


class ForgedStore:
    """A store that lost its attempts."""

    def __init__(self, store: SqliteStore) -> None:
        self.ledger = store.ledger
        self.rollouts = store.rollouts
        self.events = store.events

    async def attempts(self, rollout_ids: object) -> list[object]:
        return []


async def test_people_see_every_attempt_the_failed_ones_too(store: SqliteStore) -> None:
    retry = RetryPolicy(max_infrastructure_failures=1)
    await store.enqueue(group(1, mode=Mode.VAL, retry=retry) + group(1, task="waiting"))
    (first,) = await store.claim("worker", limit=1)
    await store.append([call(first.attempt.id, "early")])
    await fail(store, first, FailureKind.INFRASTRUCTURE)
    rollouts = await store.rollouts(RolloutQuery(run="run"))
    by_task = {one.spec.task_id: one for one in rollouts}
    (second,) = [
        one for one in await store.claim("worker", limit=2) if one.rollout.id == first.rollout.id
    ]
    await succeed(store, second, 1.0, calls=2)
    tried, waiting = await read_attempts(store, [by_task["task"], by_task["waiting"]])
    assert [one.attempt.state.value for one in tried] == ["failed", "succeeded"]
    assert [len(one.transitions) for one in tried] == [1, 2]
    assert [len(one.events) for one in tried] == [1, 3]  # two calls and the reward
    assert [one.attempt.state.value for one in waiting] == ["running"]  # claimed, not begun


async def test_no_rollouts_have_no_attempts(store: SqliteStore) -> None:
    assert await read_attempts(store, []) == []


def step(ident: str, parent: str | None, agent: str | None = None) -> Transition:
    return Transition(
        step_id=StepId(ident),
        rollout_id=RolloutId("r"),
        attempt_id=AttemptId("a"),
        kind=StepKind.TOOL,
        name=ident,
        agent=agent,
        parent_id=None if parent is None else StepId(parent),
        started_at=AT,
    )


def test_steps_are_outlined_from_the_top_down_whatever_their_parents_are() -> None:
    steps = [step("b", "a"), step("a", None), step("c", "a"), step("d", "b")]
    # one whose parent nobody knows, and a circle
    steps += [step("lost", "nobody"), step("x", "y"), step("y", "x")]
    drawn = [(depth, one.name) for depth, one in outline(steps)]
    assert drawn == [
        (0, "a"), (1, "b"), (2, "d"), (1, "c"), (0, "lost"), (0, "x"), (1, "y")
    ]  # fmt: skip


def test_the_agents_around_a_step_are_told_from_the_outermost_to_its_own() -> None:
    steps = [
        step("a", None, "team"), step("b", "a"), step("c", "b", "maths"), step("d", "c", "maths"),
        step("e", "lost", "alone"), step("f", "e"),
        step("x", "y", "one"), step("y", "x", "two"), step("z", None),
    ]  # fmt: skip
    known = {one.step_id: one for one in steps}
    assert {one.name: agent_path(one, known) for one in steps} == {
        "a": ["team"], "b": ["team"], "c": ["team", "maths"], "d": ["team", "maths"],
        "e": ["alone"], "f": ["alone"],
        "x": ["two", "one"], "y": ["one", "two"], "z": [],
    }  # fmt: skip
    # A call's own word goes before its parents', which may not be known.
    said = structs.replace(call(AttemptId("a"), "c"), agent="maths", within=("team", "club"))
    asked = structs.replace(step("call", "lost", "maths"), call=said)
    tool = step("tool", "call", "maths")
    known = {one.step_id: one for one in (asked, tool)}
    assert [agent_path(one, known) for one in (asked, tool)] == [["team", "club", "maths"]] * 2
