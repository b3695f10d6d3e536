"""Each check finds its kind in what rollouts left in a real store, and passes what is like it and right."""

import json
from collections.abc import AsyncGenerator, Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
import pytest_asyncio

from lightningrl.checks import Evidence, Finding, Level, Place, examine
from lightningrl.cli.wiring import Wiring, count_wiring
from lightningrl.recipe import Recipe, parse_recipe
from lightningrl.schema import (
    AttemptId,
    AttemptState,
    CallEvent,
    CallStatus,
    Event,
    EventId,
    Failure,
    FailureKind,
    LogTopic,
    Mode,
    Origin,
    RetryPolicy,
    RewardEvent,
    StepEndEvent,
    StepId,
    StepKind,
    StepStartEvent,
)
from lightningrl.store import RolloutQuery
from lightningrl.store.sqlite import SqliteStore
from lightningrl.traces import read_attempts
from lightningrl_testkit.records import AT, call, group, log, reward

RECIPE: dict[str, Any] = {"name": "run", "agent": "m:f"}
ONCE = RetryPolicy(max_attempts=1, max_infrastructure_failures=0)

Left = Callable[[AttemptId], list[Event]]
"""The events that an attempt leaves."""


class Lab:
    """A store that rollouts leave something in, and what the checks say of it."""

    def __init__(self, store: SqliteStore) -> None:
        self.store = store
        self.unidentified: dict[str, int] = {}
        self._ended = 0

    async def rollouts(
        self,
        *left: Left,
        task: str = "task",
        mode: Mode = Mode.VAL,
        rewards: Sequence[float] = (),
        failure: Failure | None = None,
    ) -> None:
        """Have rollouts of one task end, with a final reward unless they failed; one for each of `left`."""
        await self.store.enqueue(group(len(left), mode=mode, task=task, retry=ONCE))
        await self._end(left, list(rewards) or [float(n) for n in range(len(left))], failure)

    async def one(self, task: dict[str, Any], *left: Left) -> None:
        """Have a rollout of a task row end."""
        (new,) = group(1, mode=Mode.VAL, task=str(task))
        await self.store.enqueue([msgspec.structs.replace(new, task=task)])
        await self._end(left, [float(self._ended)], None)

    async def _end(
        self, left: Sequence[Left], rewards: Sequence[float], failure: Failure | None
    ) -> None:
        self._ended += len(left)
        for place, claim in enumerate(await self.store.claim("w", limit=len(left))):
            attempt = claim.attempt.id
            given: list[Event] = [] if failure else [reward(attempt, rewards[place])]
            await self.store.append([*left[place](attempt), *given])
            state = AttemptState.FAILED if failure else AttemptState.SUCCEEDED
            await self.store.finish(attempt, state, failure=failure)

    async def examine(self, place: Place = Place.TRY, **recipe: Any) -> list[Finding]:
        """What the checks say."""
        found = await read_attempts(self.store, await self.store.rollouts(RolloutQuery()))
        parsed: Recipe = parse_recipe(RECIPE | recipe)
        records = tuple(map(tuple, found))
        return examine(Evidence("run", records, parsed, self.unidentified), place)

    async def only(self, place: Place = Place.TRY, **recipe: Any) -> Finding:
        """The one thing that they say."""
        (finding,) = await self.examine(place, **recipe)
        return finding

    async def wiring(self) -> Wiring:
        """What was counted."""
        return count_wiring(
            await read_attempts(self.store, await self.store.rollouts(RolloutQuery())), {}
        )


@pytest_asyncio.fixture
async def lab(tmp_path: Path) -> AsyncGenerator[Lab]:
    store = SqliteStore.open(tmp_path / "store.db")
    yield Lab(store)
    await store.close()


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


def closed(attempt: AttemptId, step: str, error: str | None = None) -> StepEndEvent:
    return StepEndEvent(
        id=EventId(f"end-{step}"), attempt_id=attempt, at=AT, step_id=StepId(step), error=error
    )


def said(topic: LogTopic, message: str) -> Left:
    """A call, and a line in the attempt's log."""
    return lambda a: [
        call(a, "c"),
        msgspec.structs.replace(log(a, "l", message), topic=topic),
    ]


# -- how calls are joined and counted -----------------------------------------------------------


async def test_a_call_whose_step_an_adapter_opened_is_joined(lab: Lab) -> None:
    # `call(a, "c")` is the call of step "step-c"
    await lab.rollouts(lambda a: [opened(a, "step-c", StepKind.LLM), call(a, "c")])
    assert await lab.examine() == []
    assert (await lab.wiring()).joined == 1


async def test_without_an_adapter_the_gateways_record_is_enough(lab: Lab) -> None:
    await lab.rollouts(lambda a: [opened(a, "mine", StepKind.TOOL), call(a, "c")])
    assert await lab.examine() == []
    assert (await lab.wiring()).joined == 1


async def test_calls_are_counted_by_what_was_asked_for_and_who_answered(lab: Lab) -> None:
    await lab.rollouts(lambda a: [call(a, "c"), call(a, "d")])
    found = await lab.wiring()
    assert found.redirected == {("policy", "policy"): 2}
    assert (found.trainable, found.untrainable) == (2, {})


async def test_steps_and_calls_that_never_meet_are_a_problem(lab: Lab) -> None:
    await lab.rollouts(lambda a: [opened(a, "other", StepKind.LLM), call(a, "c")])
    finding = await lab.only()
    assert (finding.kind, finding.level) == ("unjoined calls", Level.PROBLEM)
    assert (await lab.wiring()).joined == 0


# -- calls --------------------------------------------------------------------------------------


async def test_a_rollout_without_a_call_is_a_problem(lab: Lab) -> None:
    await lab.rollouts(lambda a: [call(a, "c")], lambda _: [])
    finding = await lab.only()
    assert (finding.kind, finding.level) == ("no model call", Level.PROBLEM)
    assert finding.evidence.startswith("in 1 rollout, such as ")


async def test_too_few_trainable_calls_are_a_problem_with_the_remedy_of_their_reason(
    lab: Lab,
) -> None:
    forced = "sampled under a grammar (tool_choice)"
    reasons = (None, forced, forced)
    await lab.rollouts(
        lambda a: [call(a, f"c{n}", untrainable=why) for n, why in enumerate(reasons)]
    )
    finding = await lab.only()
    assert finding.kind == "untrainable calls"
    assert finding.evidence == (
        "only 33% of the 3 model calls could be trained (guards.min_trainable_share: 0.5): 2 x "
        + forced
    )
    assert "with_structured_output" in finding.remedy
    assert await lab.examine(guards={"min_trainable_share": 0.33}) == []


async def test_an_endpoint_without_token_ids_can_still_be_looked_at_as_the_remedy_says(
    lab: Lab,
) -> None:
    lacking = "the engine gave no prompt token ids"
    await lab.rollouts(lambda a: [call(a, "c", untrainable=lacking)])
    assert "add guards.min_trainable_share=0" in (await lab.only()).remedy
    assert await lab.examine(guards={"min_trainable_share": 0.0}) == []


async def test_calls_that_the_recipe_leaves_out_are_no_loss(lab: Lab) -> None:
    await lab.rollouts(lambda a: [call(a, "c"), call(a, "d", untrainable="a grammar")])
    frozen = {"policy": {"model": "m", "trainable": False}}
    assert await lab.examine(policies=frozen) == []


async def test_an_endpoint_without_token_ids_is_named_as_such(lab: Lab) -> None:
    await lab.rollouts(lambda a: [call(a, "c", prompt=())])
    finding = await lab.only()
    assert "0% of the 1 model call could" in finding.evidence
    assert "the endpoint must give the token ids" in finding.remedy


async def test_calls_that_nobody_could_place_are_a_problem(lab: Lab) -> None:
    await lab.rollouts(lambda a: [call(a, "c")])
    lab.unidentified = {"": 2}
    finding = await lab.only()
    assert (finding.kind, finding.level) == ("refused requests", Level.PROBLEM)
    assert finding.evidence.startswith("2 model calls came without a rollout and got status 401")
    assert "lightningrl.bind" in finding.remedy


@pytest.mark.parametrize(
    ("origin", "told", "remedy"),
    [
        (Origin.THREAD, "from a thread that no rollout started", "lightningrl.bind"),
        (Origin.ENDED, "from work of a rollout that had ended", "end threads and tasks"),
        (Origin.REWARD, "from the reward function", "export the judge's key"),
        (Origin.MAIN, "from the main thread", "inside the agent"),
        (Origin.CHILD, "from a child process", "lightningrl.environment()"),
        (Origin.LIBRARY, "by a client that is not captured", "`command`"),
        (Origin.ELSEWHERE, "without a valid key", "OPENAI_API_KEY"),
    ],
)
async def test_they_are_counted_by_where_they_came_from(
    lab: Lab, origin: Origin, told: str, remedy: str
) -> None:
    await lab.rollouts(lambda a: [call(a, "c")])
    lab.unidentified = {origin.value: 2}
    finding = await lab.only()
    assert f"got status 401: 2 {told}" in finding.evidence
    assert remedy in finding.remedy
    assert ";" not in finding.remedy  # of this one alone


async def test_several_origins_have_a_remedy_each(lab: Lab) -> None:
    await lab.rollouts(lambda a: [call(a, "c")])
    lab.unidentified = {"child": 1, "thread": 2}
    finding = await lab.only()
    assert "3 model calls came" in finding.evidence
    assert "2 from a thread that no rollout started, 1 from a child process" in finding.evidence
    assert finding.remedy.count(" needs `") == 2


async def test_refusals_that_the_agent_caught_are_counted_by_their_kind(lab: Lab) -> None:
    def failed(attempt: AttemptId, ident: str) -> CallEvent:
        plain = call(attempt, ident)
        return msgspec.structs.replace(
            plain, status=CallStatus.FAILED, http_status=400, error="too long", choices=()
        )

    refused = said(LogTopic.REFUSED, "a request was refused (404, no_such_route): embeddings")
    await lab.rollouts(lambda a: [*refused(a), failed(a, "d"), failed(a, "e")])
    finding = await lab.only()
    assert (finding.kind, finding.level) == ("refused requests", Level.WARNING)
    assert "3 requests of rollouts that succeeded" in finding.evidence
    assert "2 x status 400: too long; 1 x a request was refused (404" in finding.evidence


async def test_what_went_to_another_host_is_named_once(lab: Lab) -> None:
    line = "the agent called 'x' at 'y', which is not of this run: sent on untouched"
    await lab.rollouts(said(LogTopic.OUTSIDE, line), said(LogTopic.OUTSIDE, line))
    finding = await lab.only()
    assert (finding.kind, finding.level) == ("other host", Level.WARNING)
    assert finding.evidence == line


async def test_model_steps_that_reached_no_model_are_a_problem(lab: Lab) -> None:
    def left(a: AttemptId) -> list[Event]:
        silent = [opened(a, "cached", StepKind.LLM), closed(a, "cached")]
        raised = [opened(a, "raised", StepKind.LLM), closed(a, "raised", "no connection")]
        return [opened(a, "step-c", StepKind.LLM), call(a, "c"), *silent, *raised]

    await lab.rollouts(left)
    finding = await lab.only()
    assert (finding.kind, finding.level) == ("unanswered steps", Level.PROBLEM)
    assert finding.evidence.startswith("1 of 3 model steps reached no model, such as 'cached'")
    assert "set_llm_cache(None)" in finding.remedy


async def test_rollouts_recorded_in_production_need_no_gateway(lab: Lab) -> None:
    asked = {"messages": [{"role": "user", "content": "1+1"}]}
    kept = msgspec.structs.replace(opened(AttemptId("a"), "kept", StepKind.LLM), inputs=asked)
    await lab.rollouts(lambda a: [msgspec.structs.replace(kept, attempt_id=a), closed(a, "kept")])
    assert await lab.examine() == []


async def test_several_models_of_which_none_is_declared_are_listed(lab: Lab) -> None:
    other: Left = lambda a: [  # noqa: E731 - one expression, as its neighbours
        msgspec.structs.replace(call(a, "c"), model="gpt-x"),
        msgspec.structs.replace(call(a, "d"), model="gpt-y"),
    ]
    await lab.rollouts(other)
    finding = await lab.only(policies={"policy": {"model": "m"}})
    assert finding.kind == "several models"
    assert finding.evidence.endswith("'gpt-x' (1 call), 'gpt-y' (1 call)")
    assert await lab.examine(policies={"policy": {"model": "m", "replaces": ["gpt-x"]}}) == []


# -- conversations ------------------------------------------------------------------------------


def asks(
    attempt: AttemptId,
    ident: str,
    prompt: Sequence[int],
    messages: Sequence[dict[str, Any]],
    answer: dict[str, Any] | str = "hello",
    **fields: Any,
) -> CallEvent:
    """A call that sends `messages` and is answered by tokens 8 and 9."""
    body = json.dumps({"messages": messages, **fields}).encode()
    plain = call(attempt, ident, prompt=prompt, answer=(8, 9), request=body)
    message = {"content": answer} if isinstance(answer, str) else answer
    choice = msgspec.structs.replace(
        plain.choices[0], message=json.dumps({"role": "assistant", **message}).encode()
    )
    return msgspec.structs.replace(plain, choices=(choice,))


def turns(
    first: Sequence[dict[str, Any]],
    second: Sequence[dict[str, Any]],
    answer: dict[str, Any] | str = "hello",
    **fields: Any,
) -> Left:
    """Two calls whose prompts part at the second token."""
    return lambda a: [
        asks(a, "c", (1, 2, 3), first, answer),
        asks(a, "d", (1, 5, 6, 8, 9, 7), second, **fields),
    ]


def system(text: str) -> dict[str, Any]:
    return {"role": "system", "content": text}


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def assistant(text: str, **fields: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **fields}


_ASKED = [system("You add."), user("1+1")]
_CALLED = {"tool_calls": [{"id": "t", "function": {"name": "add", "arguments": '{"x":1}'}}]}
_SPACED = {"tool_calls": [{"id": "t", "function": {"name": "add", "arguments": '{"x": 1}'}}]}

BROKEN = {
    "a nonce": (
        turns(
            [system("billing\nv=2 cch=44cb6; rest"), user("1+1")],
            [system("billing\nv=2 cch=9a1f0; rest"), user("1+1"), assistant("hello"), user("go on")],
        ),
        "line 2 of the system prompt differs: 'cch=44cb6;' became 'cch=9a1f0;'",
    ),
    "an edited message": (
        turns(_ASKED, [_ASKED[0], user("1+2"), assistant("hello"), user("go on")]),
        "line 1 of message 2 (user) differs: '1+1' became '1+2'",
    ),
    "a stripped answer": (
        turns(_ASKED, [*_ASKED, assistant("hello"), user("go on")], " hello"),
        "line 1 of the answer that was sent back differs: ' ' became 'hello'",
    ),
    "a tool call in other spacing": (
        turns(_ASKED, [*_ASKED, assistant("", **_SPACED), user("go on")], _CALLED),
        "a tool call in the answer that was sent back differs:",
    ),
    "dropped reasoning": (
        turns(_ASKED, [*_ASKED, assistant("hello"), user("go on")], {"content": "hello", "reasoning": "hm"}),
        "the client left the model's reasoning out of the answer that it sent back",
    ),
    "other tools": (
        turns(_ASKED, [*_ASKED, assistant("hello"), user("go on")], tools=[{"type": "function"}]),
        "the tools that are offered differ",
    ),
    "a template": (
        turns(_ASKED, [*_ASKED, assistant("hello"), user("go on")]),
        "the messages are equal, so the chat template or the tool parser renders",
    ),
    "a missing answer": (
        turns(
            [*_ASKED, assistant("one"), user("2+2")],
            [*_ASKED, assistant("one"), user("2+2"), user("go on"), assistant("hello")],
        ),
        "the model's answer is missing: where it was, message 5 is of the user",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
async def test_turns_that_begin_rows_of_their_own_are_told_with_what_differs(
    lab: Lab, name: str
) -> None:
    left, words = BROKEN[name]
    await lab.rollouts(left)
    finding = await lab.only()
    assert (finding.kind, finding.level) == ("broken conversations", Level.WARNING)
    assert finding.evidence.startswith("1 of 1 call that follow an earlier answer begin a row")
    assert words in finding.evidence


async def test_they_are_a_problem_where_the_recipe_sets_a_limit(lab: Lab) -> None:
    await lab.rollouts(BROKEN["a nonce"][0])
    assert (await lab.only(guards={"min_merged_share": 0.5})).level is Level.PROBLEM


async def test_examples_in_a_prompt_are_no_answers_of_the_model(lab: Lab) -> None:
    examples = [system("You add."), user("0+0"), assistant("0")]
    await lab.rollouts(turns([*examples, user("1+1")], [*examples, user("2+2")]))
    assert await lab.examine() == []


async def test_turns_that_continue_are_no_finding(lab: Lab) -> None:
    later = [*_ASKED, assistant("hello"), user("go on")]
    await lab.rollouts(
        lambda a: [asks(a, "c", (1, 2), _ASKED), asks(a, "d", (1, 2, 8, 9, 7), later)]
    )
    assert await lab.examine() == []


async def test_a_first_call_that_holds_another_rollouts_answer_is_a_problem(lab: Lab) -> None:
    await lab.rollouts(
        lambda a: [asks(a, "c", (1,), [user("1+1")], "two")],
        lambda a: [asks(a, "c", (1, 3), [user("1+1"), assistant("two"), user("1+1")])],
    )
    finding = await lab.only()
    assert (finding.kind, finding.level) == ("carried-over state", Level.PROBLEM)
    assert finding.evidence.startswith("the first call of 1 attempt already holds answers")


async def test_a_first_call_with_examples_carries_nothing_over(lab: Lab) -> None:
    examples = [user("0+0"), assistant("0"), user("1+1")]
    left: Left = lambda a: [asks(a, "c", (1,), examples, "two")]  # noqa: E731 - as its neighbours
    await lab.rollouts(left, left)
    assert await lab.examine() == []


async def test_examples_that_the_model_would_answer_alike_carry_nothing_over(lab: Lab) -> None:
    examples = [user("0+0"), assistant("0")]
    await lab.rollouts(
        lambda a: [asks(a, "c", (1,), [*examples, user("0+0")], "0")],
        lambda a: [asks(a, "c", (1,), [*examples, user("1+1")], "2")],
    )
    assert await lab.examine() == []


async def test_requests_that_hold_no_messages_are_passed(lab: Lab) -> None:
    def odd(a: AttemptId) -> list[Event]:
        bodies = (b'{"messages":"hello"}', b'{"messages":["hello"]}', b'{"messages":[[1]]}')
        return [call(a, f"c{n}", prompt=(n + 1,), request=body) for n, body in enumerate(bodies)]

    await lab.rollouts(odd, odd)
    assert await lab.examine() == []


async def test_distinct_tasks_with_one_prompt_are_told(lab: Lab) -> None:
    for question in ("1+1", "2+2"):
        await lab.one(
            {"id": question, "question": question}, lambda a: [asks(a, "c", (1,), [user("go")])]
        )
    finding = await lab.only()
    assert (finding.kind, finding.level) == ("same prompt", Level.WARNING)
    assert finding.evidence.startswith("2 distinct tasks (")


async def test_a_task_that_stands_in_the_data_twice_may_have_one_prompt(lab: Lab) -> None:
    for place in ("a", "b"):
        await lab.one(
            {"id": place, "question": "1+1"}, lambda a: [asks(a, "c", (1,), [user("1+1")])]
        )
    assert [one.kind for one in await lab.examine(Place.DOCTOR)] == []


# -- rewards and failures -----------------------------------------------------------------------


async def test_all_tasks_that_earn_the_same_are_told_in_a_trial(lab: Lab) -> None:
    for task in ("a", "b"):
        await lab.rollouts(lambda a: [call(a, "c")], task=task, rewards=[0.0])
    finding = await lab.only()
    assert (finding.kind, finding.level) == ("all rewards equal", Level.WARNING)
    assert "all 2 rollouts, of 2 tasks, earned 0" in finding.evidence


async def test_an_error_that_the_reward_function_caught_is_a_problem_where_nothing_else_is_seen(
    lab: Lab,
) -> None:
    caught = said(LogTopic.REWARD_ERROR, "the reward function caught an error: signal")
    await lab.rollouts(caught, rewards=[0.0])
    finding = await lab.only()
    assert (finding.kind, finding.level) == ("reward errors", Level.PROBLEM)
    await lab.rollouts(lambda a: [call(a, "c")], task="other", rewards=[1.0])
    assert (await lab.only()).level is Level.WARNING


async def test_step_rewards_for_unknown_steps_are_a_problem(lab: Lab) -> None:
    def left(a: AttemptId) -> list[Event]:
        known: list[RewardEvent] = [reward(a, 1.0, name="r", step="step-c")]
        return [call(a, "c"), *known, reward(a, 1.0, name="r", step="nowhere")]

    await lab.rollouts(left)
    finding = await lab.only()
    assert (finding.kind, finding.level) == ("unknown steps", Level.PROBLEM)
    assert "'nowhere'" in finding.evidence


async def test_a_failed_rollout_is_a_problem_unless_its_failure_has_a_reward(lab: Lab) -> None:
    limit = Failure(FailureKind.AGENT, "MaxTurnsExceeded: 10\n  File ...")
    await lab.rollouts(lambda a: [call(a, "c")], failure=limit)
    finding = await lab.only()
    assert (finding.kind, finding.level) == ("rollouts fail", Level.PROBLEM)
    assert finding.evidence.endswith("(agent): MaxTurnsExceeded: 10")
    assert "algorithm.failure_reward" in finding.remedy
    algorithm = {"iterations": 1, "tasks_per_iteration": 1, "group_size": 2, "failure_reward": -1.0}
    rewarded = await lab.only(algorithm=algorithm)
    assert rewarded.level is Level.WARNING
    assert rewarded.evidence.endswith("Reward -1 stands for 1 of them (algorithm.failure_reward)")


@pytest.mark.parametrize(
    ("message", "told"),
    [
        ('ValueError: no\n  File "a.py", line 3, in f\n    g()\n    ^^^', "ValueError: no"),
        (
            'RuntimeError: Error in generating:\nError code: 400 - too long\n  File "a.py", line 3, in f',
            "RuntimeError: Error in generating: Error code: 400 - too long",
        ),
        (
            "CommandFailed: 'python a.py' ended with status 1; it wrote last:\nTraceback (most recent call last):"
            "\n  File \"a.py\", line 1\nKeyError: 'x'",
            "CommandFailed: 'python a.py' ended with status 1; it wrote last: KeyError: 'x'",
        ),
        (
            "CommandFailed: 'node a.mjs' ended with status 1; it wrote last:\n  throw e\n  ^\n\nError: 400 no"
            "\n    at f (a.mjs:1:1) {\n  status: 400\n}\n\nNode.js v20.1.0",
            "CommandFailed: 'node a.mjs' ended with status 1; it wrote last: Error: 400 no",
        ),
    ],
    ids=["one line", "several", "command", "node"],
)
async def test_a_failure_is_told_with_its_cause(lab: Lab, message: str, told: str) -> None:
    await lab.rollouts(lambda a: [call(a, "c")], failure=Failure(FailureKind.AGENT, message))
    assert (await lab.only()).evidence.endswith(f"(agent): {told}")


async def test_failed_infrastructure_is_never_rewarded(lab: Lab) -> None:
    away = Failure(FailureKind.INFRASTRUCTURE, "the engine is away")
    await lab.rollouts(lambda a: [call(a, "c")], failure=away)
    algorithm = {"iterations": 1, "tasks_per_iteration": 1, "group_size": 2, "failure_reward": -1.0}
    finding = await lab.only(algorithm=algorithm)
    assert finding.level is Level.PROBLEM
    assert "algorithm.failure_reward" not in finding.evidence + finding.remedy


async def test_problems_come_before_warnings(lab: Lab) -> None:
    await lab.rollouts(said(LogTopic.OUTSIDE, "went out"))
    lab.unidentified = {"child": 1}
    assert [one.level for one in await lab.examine()] == [Level.PROBLEM, Level.WARNING]
