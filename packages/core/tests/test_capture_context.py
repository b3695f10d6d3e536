"""Steps, rewards and threads belong to the rollout that started them, and to nothing else."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgspec
import pytest

import lightningrl
from lightningrl.capture.context import (
    RolloutContext,
    current,
    end_step,
    in_rollout,
    inside,
    start_step,
    stream_inside,
)
from lightningrl.capture.jsonable import tool_arguments
from lightningrl.capture.sink import BufferSink
from lightningrl.errors import AgentError
from lightningrl.schema import (
    AttemptId,
    Event,
    RewardEvent,
    RolloutId,
    StepEndEvent,
    StepKind,
    StepStartEvent,
)
from lightningrl_testkit.contexts import rollout_context


def make_context(name: str = "one") -> tuple[RolloutContext, BufferSink]:
    sink = BufferSink()
    context = rollout_context(
        rollout_id=RolloutId(f"rollout-{name}"),
        attempt_id=AttemptId(f"attempt-{name}"),
        server_url="http://127.0.0.1:1/",
        sink=sink,
    )
    return context, sink


def starts(sink: BufferSink) -> list[StepStartEvent]:
    return [one for one in sink.events if isinstance(one, StepStartEvent)]


def ends(sink: BufferSink) -> list[StepEndEvent]:
    return [one for one in sink.events if isinstance(one, StepEndEvent)]


def rewards(sink: BufferSink) -> list[tuple[float, str | None, str, int]]:
    found = [one for one in sink.events if isinstance(one, RewardEvent)]
    return [(one.value, one.step_id, one.name, one.revision) for one in found]


# -- steps -----------------------------------------------------------------------------------------


def test_steps_form_a_tree_and_inherit_the_agent() -> None:
    context, sink = make_context()
    with (
        in_rollout(context),
        lightningrl.step("agent", "solver", agent="solver") as outer,
        lightningrl.step("tool", "search", inputs={"q": "x"}, tool_call_id="c1") as inner,
    ):
        inner.output = ["found"]
    first, second = starts(sink)
    assert (first.kind, first.parent_id, first.agent) == (StepKind.AGENT, None, "solver")
    assert (second.parent_id, second.agent, second.tool_call_id) == (outer.id, "solver", "c1")
    assert second.inputs == {"q": "x"}
    assert [(one.step_id, one.output) for one in ends(sink)] == [
        (inner.id, ["found"]),
        (outer.id, None),
    ]


def test_an_exception_is_the_steps_error_and_passes_on() -> None:
    context, sink = make_context()
    with (
        in_rollout(context),
        pytest.raises(ValueError, match="broken"),
        lightningrl.step("tool", "search"),
    ):
        raise ValueError("broken")
    assert [one.error for one in ends(sink)] == ["ValueError: broken"]


def test_an_exception_that_cannot_be_shown_passes_on_as_well() -> None:
    class Broken(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no")

    context, sink = make_context()
    with in_rollout(context), pytest.raises(Broken), lightningrl.step("tool", "search"):
        raise Broken
    assert [one.error for one in ends(sink)] == ["Broken: <a text that can't be shown>"]


def test_a_step_ends_once() -> None:
    context, sink = make_context()
    with in_rollout(context):
        step = start_step("tool", "search")
        end_step(step, output=1)
        end_step(step, error="too late")
    assert [(one.output, one.error) for one in ends(sink)] == [(1, None)]


def test_a_started_step_is_current_only_inside_it() -> None:
    context, sink = make_context()
    with in_rollout(context):
        start_step("agent", "a")
        start_step("agent", "b")
    assert [one.parent_id for one in starts(sink)] == [None, None]


def test_outside_a_rollout_steps_and_rewards_do_nothing() -> None:
    assert current() is None
    with lightningrl.step("tool", "search") as step:
        lightningrl.reward(float("nan"))
        lightningrl.final_reward(1.0)
    assert step.context is None


def test_when_the_attempt_has_ended_nothing_more_is_recorded() -> None:
    context, sink = make_context()
    with in_rollout(context):
        step = start_step("tool", "slow")
        context.closed = True
        end_step(step)
        assert current() is None
        lightningrl.final_reward(1.0)
    assert [type(one) for one in sink.events] == [StepStartEvent]


def test_a_step_that_has_ended_is_current_nowhere() -> None:
    context, sink = make_context()
    with in_rollout(context), lightningrl.step("agent", "outer", agent="outer"):
        inner = start_step("tool", "search", agent="inner")
        with inside(inner):
            end_step(inner)  # as a framework does that tells of it while its code still runs
            lightningrl.reward(1.0)
            later = start_step("tool", "later")
    outer = starts(sink)[0].step_id
    assert rewards(sink) == [(1.0, outer, "reward", 0)]
    assert (starts(sink)[2].parent_id, later.agent) == (outer, "outer")


def test_what_is_open_when_the_attempt_ends_is_ended_the_innermost_first() -> None:
    context, sink = make_context()
    with in_rollout(context):
        outer = start_step("agent", "a")
        inner = start_step("tool", "slow")
        end_step(start_step("tool", "quick"))
    context.close()
    end_step(inner, output="too late")
    cut = [
        one.step_id for one in ends(sink) if one.error == "the attempt ended before this step did"
    ]
    assert cut == [inner.id, outer.id]
    assert len(ends(sink)) == 3
    assert context.closed


@pytest.mark.parametrize(
    ("inputs", "stored"),
    [
        (object, "<class 'object'>"),
        ({1: b"a"}, {"1": "YQ=="}),
        ({"set": {1}}, {"set": [1]}),
        (AttemptId("a"), "a"),
        # Beyond what msgpack knows: over 64 bits, and half of a surrogate pair.
        (
            {"a": [2**64, -(2**63) - 1, 2**64 - 1]},
            {"a": [str(2**64), str(-(2**63) - 1), 2**64 - 1]},
        ),
        ({"\ud83d": "\ud83d!"}, {"\\ud83d": "\\ud83d!"}),
        ([10**5000], ["<int that can't be shown>"]),
    ],
)
def test_any_input_has_a_json_form(inputs: object, stored: object) -> None:
    context, sink = make_context()
    with in_rollout(context):
        start_step("tool", "search", inputs=inputs)
    assert starts(sink)[0].inputs == stored


def test_an_input_that_contains_itself_or_cannot_be_shown_is_survived() -> None:
    class Broken:
        def __repr__(self) -> str:
            raise RuntimeError("no")

    cycle: list[object] = []
    cycle.append(cycle)
    context, sink = make_context()
    with in_rollout(context):
        start_step("tool", "search", inputs=cycle)
        start_step("tool", "search", inputs=Broken())
    assert [one.inputs for one in starts(sink)] == ["[[...]]", "<Broken that can't be shown>"]


# -- streams ---------------------------------------------------------------------------------------


async def test_a_stream_is_inside_its_step_and_its_reader_is_not() -> None:
    context, sink = make_context()

    async def items():
        for index in range(2):
            start_step("tool", f"inner-{index}")
            yield index

    with in_rollout(context):
        step = start_step("agent", "streamer")
        async for index in stream_inside(step, items()):
            start_step("tool", f"reader-{index}")
    parents = {one.name: one.parent_id for one in starts(sink)[1:]}
    assert parents == {
        "inner-0": step.id,
        "reader-0": None,
        "inner-1": step.id,
        "reader-1": None,
    }


async def test_a_stream_may_be_closed_from_another_task() -> None:
    context, _ = make_context()
    closed = asyncio.Event()

    async def items():
        try:
            yield 1
        finally:
            closed.set()

    with in_rollout(context):
        stream = stream_inside(start_step("agent", "streamer"), items())
        assert await anext(stream) == 1
        await asyncio.create_task(stream.aclose())
    assert closed.is_set()


# -- tasks and threads -----------------------------------------------------------------------------


async def test_tasks_of_many_rollouts_never_mix() -> None:
    async def agent(name: str) -> BufferSink:
        context, sink = make_context(name)
        with in_rollout(context):
            await asyncio.gather(*(tool(name) for _ in range(3)))
        return sink

    async def tool(name: str) -> None:
        with lightningrl.step("tool", name):
            await asyncio.sleep(0)
            await asyncio.to_thread(lightningrl.reward, 1.0)

    sinks = await asyncio.gather(*(agent(f"r{index}") for index in range(16)))
    for index, sink in enumerate(sinks):
        assert {one.attempt_id for one in sink.events} == {f"attempt-r{index}"}
        assert [one.name for one in starts(sink)] == [f"r{index}"] * 3
        assert {step for _, step, _, _ in rewards(sink)} == {one.step_id for one in starts(sink)}


def test_a_users_thread_belongs_to_the_rollout_only_if_bound() -> None:
    context, _ = make_context()
    found: list[RolloutContext | None] = []

    def work() -> None:
        found.append(current())

    with in_rollout(context):
        for target in (work, lightningrl.bind(work)):
            thread = threading.Thread(target=target)
            thread.start()
            thread.join()
    assert found == [None, context]


def test_a_bound_function_may_run_in_several_threads_at_once() -> None:
    context, _ = make_context()
    meet = threading.Barrier(2, timeout=10)

    def work(value: int) -> tuple[int, RolloutContext | None]:
        meet.wait()
        return value, current()

    with in_rollout(context), ThreadPoolExecutor(2) as pool:
        results = list(pool.map(lightningrl.bind(work), [1, 2]))
    assert results == [(1, context), (2, context)]


def test_a_coroutine_function_is_not_bound_in_vain() -> None:
    async def work() -> None: ...

    with pytest.raises(TypeError, match="'work' is a coroutine function"):
        lightningrl.bind(work)


# -- rewards ---------------------------------------------------------------------------------------


def test_a_reward_is_the_current_steps_or_the_named_ones() -> None:
    context, sink = make_context()
    with in_rollout(context), lightningrl.step("tool", "search") as step:
        lightningrl.reward(0.5)
        lightningrl.reward(1, step="s-other", name="format")
        lightningrl.reward(2.0, step=step, name="style")
        lightningrl.reward(3.0, step="resp_s-1")  # the id of a response, as the agent got it
    assert rewards(sink) == [
        (0.5, step.id, "reward", 0),
        (1.0, "s-other", "format", 0),
        (2.0, step.id, "style", 0),
        (3.0, "s-1", "reward", 0),
    ]


def test_the_latest_reward_of_a_step_and_name_has_the_highest_revision() -> None:
    context, sink = make_context()
    with in_rollout(context):
        for value in (0.1, 0.2):
            lightningrl.reward(value, step="s-1")
    assert rewards(sink) == [(0.1, "s-1", "reward", 0), (0.2, "s-1", "reward", 1)]


def test_a_final_reward_rewards_no_step() -> None:
    context, sink = make_context()
    with in_rollout(context), lightningrl.step("tool", "search"):
        lightningrl.final_reward(1)
    assert rewards(sink) == [(1.0, None, "final", 0)]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_reward_that_is_no_finite_number_is_refused_by_name(value: float) -> None:
    context, sink = make_context()
    with in_rollout(context):
        with pytest.raises(ValueError, match=r"the reward 'final' of rollout 'rollout-one' is"):
            lightningrl.final_reward(value)
        with pytest.raises(ValueError, match=r"the reward 'format' of rollout 'rollout-one' is"):
            lightningrl.reward(value, step="s-1", name="format")
    assert sink.events == ()


def test_a_reward_without_a_step_says_what_to_do() -> None:
    context, _ = make_context()
    with in_rollout(context), pytest.raises(AgentError, match=r"no step is current.*final_reward"):
        lightningrl.reward(1.0)


# -- the sink --------------------------------------------------------------------------------------


def test_events_stay_pending_until_they_are_acknowledged() -> None:
    context, sink = make_context()
    with in_rollout(context):
        for value in (1, 2, 3):
            lightningrl.reward(value, step="s-1")

    def values(events: list[Event]) -> list[float]:
        return [one.value for one in events if isinstance(one, RewardEvent)]

    assert values(sink.pending(2)) == [1, 2]
    sink.acknowledge(2)
    assert values(sink.pending()) == [3]
    sink.acknowledge(5)
    assert sink.pending() == []
    assert len(sink.events) == 3


@pytest.mark.parametrize(
    "text",
    ['{"key": ', "[" * 100_000, '{"key": ' + "1" * 5000 + "}", None],
    ids=("broken", "deep", "long", "none"),
)
def test_arguments_that_are_no_data_are_kept_as_they_came(text: Any) -> None:
    assert tool_arguments(text) == text


def test_a_request_continues_only_what_is_on_its_way_to_the_store() -> None:
    kept: list[Any] = []

    class Slow:
        def emit(self, event: Any) -> None:
            if event.name == "first":  # another thread is faster
                start_step("llm", "second", asks=lambda: {"messages": ["a", "b"]})
            kept.append((event.name, event.inputs))

    with in_rollout(rollout_context(sink=Slow(), has_gateway=False)):
        start_step("llm", "first", asks=lambda: {"messages": ["a"]})
    assert kept == [("second", {"messages": ["a", "b"]}), ("first", {"messages": ["a"]})]


def test_whatever_a_model_calls_a_tool_can_be_stored() -> None:
    context, sink = make_context()
    with in_rollout(context):
        step = start_step("tool", "\ud83d", tool_call_id="\ud83d")
        end_step(step, error="no tool \ud83d")
        context.log("info", "no tool \ud83d")
    assert msgspec.msgpack.encode(sink.events)
    [start] = starts(sink)
    assert (start.name, start.tool_call_id) == ("\\ud83d", "\\ud83d")
