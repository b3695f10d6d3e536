"""How an agent is wired is judged by what a few of its rollouts left in a real store."""

from collections.abc import Callable
from pathlib import Path

import msgspec

from lightningrl.cli.wiring import Wiring, judge_wiring
from lightningrl.recipe import parse_recipe
from lightningrl.schema import (
    AttemptId,
    AttemptState,
    Event,
    EventId,
    LogTopic,
    Mode,
    StepId,
    StepKind,
    StepStartEvent,
)
from lightningrl.store import RolloutQuery
from lightningrl.store.sqlite import SqliteStore
from lightningrl.traces import read_attempts
from lightningrl_testkit.records import AT, call, group, log, reward

RECIPE = parse_recipe({"name": "run", "agent": "m:f"})

Left = Callable[[AttemptId], list[Event]]
"""The events that an attempt leaves."""


def opened(attempt: AttemptId, step: str, kind: StepKind) -> StepStartEvent:
    return StepStartEvent(
        id=EventId(f"start-{step}"),
        attempt_id=attempt,
        at=AT,
        step_id=StepId(step),
        parent_id=None,
        kind=kind,
        name="n",
        agent=None,
    )


async def wiring(folder: Path, *left: Left) -> Wiring:
    """Judge succeeded rollouts with a reward, one for each of `left`."""
    store = SqliteStore.open(folder / "store.db")
    await store.enqueue(group(len(left), mode=Mode.VAL))
    for claim, events in zip(await store.claim("w", limit=len(left)), left, strict=True):
        attempt = claim.attempt.id
        await store.append([*events(attempt), reward(attempt, 1.0)])
        await store.finish(attempt, AttemptState.SUCCEEDED)
    records = await read_attempts(store, await store.rollouts(RolloutQuery()))
    await store.close()
    return judge_wiring(RECIPE, records)


async def test_a_call_whose_step_an_adapter_opened_is_joined(tmp_path: Path) -> None:
    # `call(a, "c")` is the call of step "step-c"
    found = await wiring(tmp_path, lambda a: [opened(a, "step-c", StepKind.LLM), call(a, "c")])
    assert (found.joined, found.problems) == (1, ())


async def test_without_an_adapter_the_gateways_record_is_enough(tmp_path: Path) -> None:
    found = await wiring(tmp_path, lambda a: [opened(a, "mine", StepKind.TOOL), call(a, "c")])
    assert (found.joined, found.problems) == (1, ())


async def test_steps_and_calls_that_never_meet_are_a_problem(tmp_path: Path) -> None:
    found = await wiring(tmp_path, lambda a: [opened(a, "other", StepKind.LLM), call(a, "c")])
    assert found.joined == 0
    (problem,) = found.problems
    assert problem.startswith("in 1 rollouts an adapter saw steps and the gateway saw calls")


async def test_a_rollout_without_a_call_is_a_problem(tmp_path: Path) -> None:
    found = await wiring(tmp_path, lambda a: [call(a, "c")], lambda _: [])
    assert (found.rollouts, found.rewarded, found.joined) == (2, 2, 1)
    (problem,) = found.problems
    assert problem.startswith("in 1 rollouts no model call was answered")


async def test_calls_that_could_not_be_trained_are_a_problem_where_they_are_the_most(
    tmp_path: Path,
) -> None:
    def left(attempt: AttemptId, *reasons: str | None) -> list[Event]:
        return [
            call(attempt, f"c{number}", untrainable=reason) for number, reason in enumerate(reasons)
        ]

    (tmp_path / "half").mkdir()
    (tmp_path / "most").mkdir()
    half = await wiring(tmp_path / "half", lambda a: left(a, None, "a grammar"))
    assert (half.trainable, half.untrainable, half.problems) == (1, {"a grammar": 1}, ())
    most = await wiring(tmp_path / "most", lambda a: left(a, None, "a grammar", "a grammar"))
    assert most.untrainable == {"a grammar": 2}
    (problem,) = most.problems
    assert problem.startswith("only 33% of the model calls could be trained")
    assert "guards.min_trainable_share: 0.5" in problem


async def test_what_went_out_untouched_is_named_once(tmp_path: Path) -> None:
    line = "the agent called 'x' at 'y', which is not of this run: sent on untouched"

    def seen(attempt: AttemptId) -> list[Event]:
        named = msgspec.structs.replace(log(attempt, "l", line), topic=LogTopic.OUTSIDE)
        return [call(attempt, "c"), named, log(attempt, "m", "something else")]

    assert (await wiring(tmp_path, seen, seen)).untouched == (line,)


async def test_calls_are_counted_by_what_was_asked_for_and_who_answered(tmp_path: Path) -> None:
    found = await wiring(tmp_path, lambda a: [call(a, "c"), call(a, "d")])
    assert found.redirected == {("policy", "policy"): 2}
    assert (found.trainable, found.untrainable) == (2, {})


async def test_calls_without_token_ids_are_counted_by_their_reason(tmp_path: Path) -> None:
    found = await wiring(tmp_path, lambda a: [call(a, "c", prompt=())])
    assert (found.trainable, found.untrainable) == (0, {"the engine gave no prompt token ids": 1})
    (problem,) = found.problems  # of an endpoint that trains nothing a tick would be a promise
    assert problem.startswith("only 0% of the model calls could be trained")
