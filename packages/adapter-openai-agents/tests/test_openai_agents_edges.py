"""The SDK beyond the contract: one agent for all, threads, tools, handoffs, guardrails, cancelling."""

from __future__ import annotations

import asyncio
import gc
import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import agents
import pytest
from agents import (
    Agent,
    GuardrailFunctionOutput,
    HandoffInputData,
    InputGuardrailTripwireTriggered,
    MaxTurnsExceeded,
    ModelBehaviorError,
    OutputGuardrailTripwireTriggered,
    RunConfig,
    Runner,
    SQLiteSession,
    UserError,
    function_tool,
    input_guardrail,
    output_guardrail,
)
from agents.models import openai_provider
from agents.run import ModelInputData
from openai import AsyncOpenAI, AuthenticationError
from openai.types.responses import (
    ResponseFunctionToolCall,
    ResponseOutputMessage,
    ResponseOutputText,
)
from pydantic import BaseModel

import lightningrl
from lightningrl.capture.context import current, in_rollout
from lightningrl.schema import StepKind
from lightningrl_testkit.lab import MODEL, CaptureLab, Recorded, in_threads_of_users
from lightningrl_testkit.model_server import Answer, ModelServer, Script, ToolCall

ROLLOUTS = 16
LEFT_OPEN = "ignore::pytest.PytestUnraisableExceptionWarning"
"""The SDK doesn't close its connections when a thread's event loop ends: collecting them warns."""


def script(request: dict[str, Any]) -> Answer:
    """ "call NAME JSON; ..." calls those tools that are offered, once; else "done: PROMPT"."""
    messages = request["messages"]
    prompt = next(one["content"] for one in reversed(messages) if one["role"] == "user")
    text = prompt if isinstance(prompt, str) else prompt[0]["text"]
    used = any(one["role"] == "tool" for one in messages)
    if request.get("response_format"):
        return Answer(json.dumps({"city": "Paris"}))
    if text.startswith("call ") and request.get("tools") and not used:
        wanted = [one.split(" ", 2)[1:] for one in text.split("; ")]
        calls = [ToolCall(f"call-{at}", *one) for at, one in enumerate(wanted, 1)]
        return Answer(tool_calls=tuple(calls))
    return Answer(f"done: {text}")


@pytest.fixture
def model() -> Script:
    return script


async def run(agent: Agent, prompt: str, *, stream: bool) -> None:
    """Run an agent to its end."""
    if not stream:
        await Runner.run(agent, prompt)
        return
    async for _ in Runner.run_streamed(agent, prompt).stream_events():
        pass


def errors(found: Recorded) -> list[tuple[str, str, str | None]]:
    """Kind, name and error of each step, in order of their start."""
    return [(one.kind, one.name, found.ends[one.step_id].error) for one in found.starts]


@function_tool
async def weather(city: str) -> str:
    """The weather of a city."""
    lightningrl.reward(0.5, name=city)
    return f"sunny in {city}"


@function_tool
def plain(city: str) -> str:
    """The weather of a city, by a function that is no coroutine function."""
    lightningrl.reward(0.25, name=city)
    return f"rainy in {city}"


SPECIALIST = Agent(name="specialist", model=MODEL, tools=[weather])
TRIAGE = Agent(name="triage", model=MODEL, handoffs=[SPECIALIST])
MANAGER = Agent(name="manager", model=MODEL, tools=[SPECIALIST.as_tool("ask", "Asks.")])


# -- many rollouts ---------------------------------------------------------------------------------


async def test_16_rollouts_share_their_agents_and_never_mix(lab: CaptureLab) -> None:
    """Handoffs and agents as tools, streamed or not, all by the same agent objects."""

    async def agent(index: int) -> None:
        if index % 2:
            kind, inner = MANAGER, f'call weather {{"city": "city-{index}"}}'
            prompt = f"call ask {json.dumps({'input': inner})}"
        else:
            kind, prompt = TRIAGE, f'call transfer_to_specialist {{"from": "city-{index}"}}'
        await run(kind, prompt, stream=index % 4 >= 2)

    async def rollout(index: int) -> tuple[int, Recorded]:
        return index, await lab.record(lambda: agent(index))

    for index, found in await asyncio.gather(*(rollout(index) for index in range(ROLLOUTS))):
        assert found.whole
        assert all(f"city-{index}" in one.request.decode() for one in found.calls)
        expected = ["manager", "specialist", "specialist", "manager"]
        assert found.callers == (expected if index % 2 else ["triage", "specialist"])


@pytest.mark.filterwarnings("ignore::ResourceWarning", LEFT_OPEN)
async def test_rollouts_in_threads_with_loops_of_their_own(lab: CaptureLab) -> None:
    """`run_sync` in a pool, and `asyncio.run` again and again: the SDK shares one HTTP client."""
    prompt = 'call plain {"city": "Oslo"}'
    agent = Agent(name="solo", model=MODEL, tools=[plain])

    async def rollout(pool: ThreadPoolExecutor, index: int) -> Recorded:
        def work() -> object:
            if index % 2:
                return asyncio.run(Runner.run(agent, prompt))
            return Runner.run_sync(agent, prompt)

        async with lab.attempt() as context:
            loop = asyncio.get_running_loop()
            await loop.run_in_executor(pool, lightningrl.bind(work))
        return await lab.recorded(context)

    with ThreadPoolExecutor(8, initializer=new_loop) as pool:
        for found in await asyncio.gather(*(rollout(pool, index) for index in range(32))):
            assert found.whole
            assert len(found.calls) == 2
            [tool] = found.of(StepKind.TOOL)
            assert [(one.step_id, one.value) for one in found.rewards] == [(tool.step_id, 0.25)]
    gc.collect()


def new_loop() -> None:
    """A loop for a pool's thread, as `run_sync` expects one."""
    asyncio.set_event_loop(asyncio.new_event_loop())


@pytest.mark.filterwarnings("ignore::ResourceWarning", LEFT_OPEN)
async def test_a_thread_that_the_user_starts_is_refused_unless_bound(lab: CaptureLab) -> None:
    async with lab.attempt() as context:
        outcome: list[Any] = []

        def work() -> None:
            try:
                outcome.append(asyncio.run(Runner.run(SPECIALIST, "hello")).final_output)
            except AuthenticationError as error:
                outcome.append(str(error))

        await in_threads_of_users(work)
    assert "belongs to no rollout" in outcome[0]
    assert outcome[1] == "done: hello"
    assert (await lab.recorded(context)).callers == ["specialist"]
    openai_provider._http_client = None  # it belongs to the first thread's loop
    gc.collect()


# -- tools -----------------------------------------------------------------------------------------


async def test_parallel_tools_keep_their_ids_inputs_and_rewards(lab: CaptureLab) -> None:
    cities = ("Paris", "Rome", "Oslo")
    prompt = "; ".join(f'call weather {{"city": "{city}"}}' for city in cities)
    found = await lab.record(lambda: Runner.run(SPECIALIST, prompt))
    tools = found.of(StepKind.TOOL)
    assert [(one.tool_call_id, one.inputs) for one in tools] == [
        (f"call-{at}", {"city": city}) for at, city in enumerate(cities, 1)
    ]
    assert [found.ends[one.step_id].output for one in tools] == [
        f"sunny in {city}" for city in cities
    ]
    rewarded = {one.name: one.step_id for one in found.rewards}
    assert rewarded == {city: one.step_id for city, one in zip(cities, tools, strict=True)}


async def test_sub_agents_at_once_hang_below_their_own_tool_calls(lab: CaptureLab) -> None:
    prompt = "; ".join(f"call ask {json.dumps({'input': name})}" for name in ("one", "two"))
    found = await lab.record(lambda: Runner.run(MANAGER, prompt))
    assert found.whole
    below = {
        found.ancestors(one.step_id)[-1 - 1].tool_call_id: one.step_id
        for one in found.of(StepKind.LLM)
        if one.agent == "specialist"
    }
    asked = {
        call: next(one for one in found.calls if one.step_id == step).request.decode()
        for call, step in below.items()
    }
    assert '"one"' in asked["call-1"]
    assert '"two"' in asked["call-2"]


async def test_what_a_tool_raised_is_known_though_the_sdk_hides_it(lab: CaptureLab) -> None:
    @function_tool
    def broken(city: str) -> str:
        raise ValueError(f"no such city: {city}")

    agent = Agent(name="a", model=MODEL, tools=[broken])
    found = await lab.record(lambda: Runner.run(agent, 'call broken {"city": "X"}'))
    [tool] = found.of(StepKind.TOOL)
    assert found.ends[tool.step_id].error == "ValueError: no such city: X"
    assert found.ends[tool.step_id].output is None
    assert found.whole


async def test_a_tool_whose_exceptions_end_the_agent(lab: CaptureLab) -> None:
    @function_tool(failure_error_function=None)
    def broken(city: str) -> str:
        raise ValueError("stop")

    agent = Agent(name="a", model=MODEL, tools=[broken])
    async with lab.attempt() as context:
        with pytest.raises(UserError, match="Error running tool broken: stop"):
            await Runner.run(agent, 'call broken {"city": "X"}')
    found = await lab.recorded(context)
    message = "UserError: Error running tool broken: stop"
    assert errors(found) == [
        ("agent", "a", message),
        ("llm", MODEL, None),
        ("tool", "broken", message),
    ]


@pytest.mark.parametrize(
    "arguments", ['{"city', '{"city":' + "1" * 5000 + "}"], ids=["broken", "long"]
)
async def test_arguments_that_are_no_json_are_an_error_of_the_tool(
    arguments: str, lab: CaptureLab
) -> None:
    found = await lab.record(lambda: Runner.run(SPECIALIST, f"call weather {arguments}"))
    [tool] = found.of(StepKind.TOOL)
    assert tool.inputs == arguments
    assert "Invalid JSON input for tool weather" in (found.ends[tool.step_id].error or "")


async def test_a_tool_that_does_not_exist_is_the_agents_error(lab: CaptureLab) -> None:
    async with lab.attempt() as context:
        with pytest.raises(ModelBehaviorError):
            await Runner.run(SPECIALIST, "call nothing {}")
    found = await lab.recorded(context)
    message = "ModelBehaviorError: Tool nothing not found in agent specialist"
    assert errors(found) == [
        ("agent", "specialist", message),
        ("llm", MODEL, None),
        ("tool", "nothing", message),
    ]


async def test_a_tool_that_does_not_exist_may_be_told_to_the_model(lab: CaptureLab) -> None:
    config = RunConfig(tool_not_found_behavior="return_error_to_model")
    found = await lab.record(lambda: Runner.run(SPECIALIST, "call nothing {}", run_config=config))
    [tool] = found.of(StepKind.TOOL)
    assert found.ends[tool.step_id].error == "Tool nothing not found"
    assert found.whole


async def test_a_tool_that_takes_too_long(lab: CaptureLab) -> None:
    @function_tool(timeout=0.05)
    async def forever(city: str) -> str:
        await asyncio.Event().wait()
        return city

    agent = Agent(name="a", model=MODEL, tools=[forever])
    found = await lab.record(lambda: Runner.run(agent, 'call forever {"city": "X"}'))
    [tool] = found.of(StepKind.TOOL)
    assert "timed out" in (found.ends[tool.step_id].error or "")
    assert found.whole


@pytest.mark.parametrize("approved", [True, False])
async def test_an_interrupted_tool_is_resumed_in_its_rollout(
    lab: CaptureLab, approved: bool
) -> None:
    @function_tool(needs_approval=True)
    async def pay(amount: int) -> str:
        return f"paid {amount}"

    agent = Agent(name="a", model=MODEL, tools=[pay])
    async with lab.attempt() as context:
        result = await Runner.run(agent, 'call pay {"amount": 7}')
        state, [asked] = result.to_state(), result.interruptions
        if approved:
            state.approve(asked)
        else:
            state.reject(asked)
        await Runner.run(agent, state)
    found = await lab.recorded(context)
    tools = [found.ends[one.step_id] for one in found.of(StepKind.TOOL)]
    waiting, ran = (None, "not run: it waits for approval"), ("paid 7", None)
    expected = [waiting, ran] if approved else [waiting]
    assert [(one.output, one.error) for one in tools] == expected
    assert {one.tool_call_id for one in found.of(StepKind.TOOL)} == {"call-1"}
    assert found.callers == ["a", "a"]
    assert found.whole


# -- handoffs and guardrails -----------------------------------------------------------------------


async def test_a_handoff_is_a_step_of_who_hands_off(lab: CaptureLab) -> None:
    found = await lab.record(lambda: Runner.run(TRIAGE, "call transfer_to_specialist {}"))
    [handoff] = found.of(StepKind.HANDOFF)
    assert (handoff.name, handoff.agent) == ("transfer_to_specialist", "triage")
    assert (handoff.inputs, handoff.tool_call_id) == ({}, "call-1")
    assert found.ends[handoff.step_id].output == "specialist"
    assert [(one.name, one.parent_id) for one in found.of(StepKind.AGENT)] == [
        ("triage", None),
        ("specialist", None),
    ]
    assert found.callers == ["triage", "specialist"]


async def test_filters_that_rewrite_the_history_change_nothing_of_the_steps(
    lab: CaptureLab,
) -> None:
    """Of a handoff, and of each model call: the prompt is no longer what it was, which the drift tells."""

    def last_only(data: Any) -> ModelInputData:
        return ModelInputData(input=data.model_data.input[-1:], instructions=None)

    def forget(data: HandoffInputData) -> HandoffInputData:
        return data.clone(pre_handoff_items=(), new_items=())

    second = Agent(name="second", model=MODEL)
    triage = Agent(
        name="triage", model=MODEL, handoffs=[agents.handoff(second, input_filter=forget)]
    )
    config = RunConfig(call_model_input_filter=last_only)
    found = await lab.record(
        lambda: Runner.run(triage, "call transfer_to_second {}", run_config=config)
    )
    assert found.callers == ["triage", "second"]
    assert len(found.of(StepKind.HANDOFF)) == 1
    assert found.whole


async def test_guardrails_are_steps_and_their_own_agents_hang_below(lab: CaptureLab) -> None:
    judge = Agent(name="judge", model=MODEL)

    @input_guardrail
    async def polite(context: Any, agent: Any, given: Any) -> GuardrailFunctionOutput:
        verdict = await Runner.run(judge, "is this polite?", context=context.context)
        return GuardrailFunctionOutput(verdict.final_output, tripwire_triggered=False)

    @output_guardrail
    async def short(context: Any, agent: Any, output: Any) -> GuardrailFunctionOutput:
        return GuardrailFunctionOutput(None, tripwire_triggered=output == "done: too long")

    agent = Agent(name="a", model=MODEL, input_guardrails=[polite], output_guardrails=[short])
    async with lab.attempt() as context:
        with pytest.raises(OutputGuardrailTripwireTriggered):
            await Runner.run(agent, "too long")
    found = await lab.recorded(context)
    checks = {one.name: found.ends[one.step_id].output for one in found.of(StepKind.GUARDRAIL)}
    assert checks == {"polite": {"triggered": False}, "short": {"triggered": True}}
    [verdict] = [one for one in found.of(StepKind.LLM) if one.agent == "judge"]
    assert [one.kind for one in found.ancestors(verdict.step_id)] == ["agent", "guardrail", "agent"]
    assert found.whole


@pytest.mark.parametrize("stream", [False, True])
async def test_a_tripwire_leaves_nothing_open(lab: CaptureLab, stream: bool) -> None:
    @input_guardrail
    async def never(context: Any, agent: Any, given: Any) -> GuardrailFunctionOutput:
        await lab.model.arrived(1)  # the model is asked at the same time
        lab.model.unblock()
        return GuardrailFunctionOutput(None, tripwire_triggered=True)

    agent = Agent(name="a", model=MODEL, input_guardrails=[never])
    async with lab.attempt() as context:
        lab.model.block()
        with pytest.raises(InputGuardrailTripwireTriggered):
            await run(agent, "hello", stream=stream)
    found = await lab.recorded(context)
    assert {one.step_id for one in found.starts} == set(found.ends)
    [check] = found.of(StepKind.GUARDRAIL)
    assert found.ends[check.step_id].output == {"triggered": True}


# -- ending early ----------------------------------------------------------------------------------


async def test_cancelling_in_a_model_call_ends_every_step_with_an_error(lab: CaptureLab) -> None:
    async with lab.attempt() as context:
        lab.model.block()
        run = asyncio.ensure_future(Runner.run(SPECIALIST, "hello"))
        await lab.model.arrived(1)
        run.cancel()
        with pytest.raises(asyncio.CancelledError):
            await run
        await lab.model.hung_up(1)
        lab.model.unblock()
        assert current() is context
    found = await lab.recorded(context)
    assert errors(found) == [
        ("agent", "specialist", "CancelledError"),
        ("llm", MODEL, "CancelledError"),
    ]


async def test_cancelling_in_a_tool_ends_every_step_with_an_error(lab: CaptureLab) -> None:
    entered = asyncio.Event()

    @function_tool
    async def wait(city: str) -> str:
        entered.set()
        await asyncio.Event().wait()
        return city

    agent = Agent(name="a", model=MODEL, tools=[wait])
    async with lab.attempt() as context:
        run = asyncio.ensure_future(Runner.run(agent, 'call wait {"city": "X"}'))
        await entered.wait()
        run.cancel()
        with pytest.raises(asyncio.CancelledError):
            await run
    found = await lab.recorded(context)
    assert [(kind, error) for kind, _, error in errors(found)] == [
        ("agent", "CancelledError"),
        ("llm", None),
        ("tool", "CancelledError"),
    ]


async def test_breaking_out_of_a_stream_leaves_nothing_open(lab: CaptureLab) -> None:
    async with lab.attempt() as context:
        result = Runner.run_streamed(SPECIALIST, 'call weather {"city": "Oslo"}')
        async for event in result.stream_events():
            if event.type == "run_item_stream_event":
                break
        result.cancel()
        if result.run_loop_task is not None:
            await asyncio.wait([result.run_loop_task])
    found = await lab.recorded(context)
    assert {one.step_id for one in found.starts} == set(found.ends)


async def test_too_many_turns_is_the_agents_error(lab: CaptureLab) -> None:
    async with lab.attempt() as context:
        with pytest.raises(MaxTurnsExceeded):
            await Runner.run(SPECIALIST, 'call weather {"city": "Oslo"}', max_turns=1)
    found = await lab.recorded(context)
    assert (errors(found)[0][2] or "").startswith("MaxTurnsExceeded")
    assert found.whole


# -- models ----------------------------------------------------------------------------------------


class Canned(agents.Model):
    """A model of the user's own, which calls no server."""

    def __init__(self, *answers: Any) -> None:
        self._answers = list(answers)

    async def get_response(self, *args: Any, **kwargs: Any) -> agents.ModelResponse:
        return agents.ModelResponse([self._answers.pop(0)], agents.Usage(), None)

    async def stream_response(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError
        yield


def message(text: str) -> ResponseOutputMessage:
    part = ResponseOutputText(type="output_text", text=text, annotations=[])
    return ResponseOutputMessage(
        id="m", type="message", role="assistant", status="completed", content=[part]
    )


async def test_another_providers_model_is_a_step_without_a_call(lab: CaptureLab) -> None:
    """And it is not redirected, nor is a client that has an address of its own."""
    call = ResponseFunctionToolCall(
        type="function_call", call_id="c-1", name="ask", arguments='{"input": "hello"}'
    )
    canned = Canned(call, message("end"))
    agent = Agent(name="boss", model=canned, tools=[SPECIALIST.as_tool("ask", "Asks.")])
    found = await lab.record(lambda: Runner.run(agent, "begin"))
    assert [(one.name, one.agent) for one in found.of(StepKind.LLM)] == [
        ("Canned", "boss"),
        (MODEL, "specialist"),
        ("Canned", "boss"),
    ]
    assert found.callers == ["specialist"]


async def test_a_foreign_server_gets_no_header_of_ours(lab: CaptureLab) -> None:
    with ModelServer() as foreign:
        async with AsyncOpenAI(base_url=foreign.url, api_key="theirs") as client:
            model = agents.OpenAIChatCompletionsModel("judge-model", openai_client=client)
            found = await lab.record(lambda: Runner.run(Agent(name="j", model=model), "hello"))
        [arrival] = foreign.arrivals
    assert not [name for name in arrival.headers if name.startswith("x-lightningrl")]
    assert arrival.headers["authorization"] == "Bearer theirs"
    assert (found.calls, [one.name for one in found.of(StepKind.LLM)]) == ([], ["judge-model"])


async def test_the_users_own_headers_and_body_arrive(lab: CaptureLab) -> None:
    settings = agents.ModelSettings(extra_headers={"x-mine": "1"}, extra_body={"user": "me"})
    agent = Agent(name="a", model=MODEL, model_settings=settings)
    found = await lab.record(lambda: Runner.run(agent, "hello"))
    [call] = found.calls
    assert json.loads(call.request)["user"] == "me"
    assert found.whole


async def test_structured_output_and_sessions_change_nothing(lab: CaptureLab) -> None:
    class City(BaseModel):
        city: str

    agent = Agent(name="a", model=MODEL, output_type=City)
    session = SQLiteSession("one")
    async with lab.attempt() as context:
        first = await Runner.run(agent, "first", session=session)
        second = await Runner.run(agent, "second", session=session)
    session.close()
    found = await lab.recorded(context)
    assert first.final_output == second.final_output == City(city="Paris")
    assert found.whole
    assert "first" in found.calls[1].request.decode()


async def test_a_retried_call_is_one_step(lab: CaptureLab) -> None:
    lab.model.fail_next(2)
    found = await lab.record(lambda: Runner.run(SPECIALIST, "hello"))
    assert found.whole
    assert len(found.calls) == 1


async def test_each_try_of_the_sdks_own_retries_is_a_step(lab: CaptureLab) -> None:
    retry = agents.ModelRetrySettings(
        max_retries=1, policy=agents.retry_policies.http_status([400])
    )
    agent = Agent(name="a", model=MODEL, model_settings=agents.ModelSettings(retry=retry))
    lab.model.fail_next(1, status=400)
    found = await lab.record(lambda: Runner.run(agent, "hello"))
    failed, delivered = found.of(StepKind.LLM)
    assert (found.ends[failed.step_id].error or "").startswith("BadRequestError")
    assert found.joined == {delivered.step_id}
    assert {one.step_id for one in found.starts} == set(found.ends)


async def test_outside_a_rollout_nothing_is_current(lab: CaptureLab) -> None:
    async with lab.attempt() as context:
        with in_rollout(None):
            agent = Agent(name="a", model=Canned(message("end")))
            result = await Runner.run(agent, "hello")
        assert result.final_output == "end"
    assert (await lab.recorded(context)).events == []
