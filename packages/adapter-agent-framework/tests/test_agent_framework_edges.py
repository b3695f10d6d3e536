"""The edges of the Microsoft Agent Framework: shared agents, streams that nobody finishes, failures."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from agent_framework import (
    Agent,
    AgentSession,
    BaseChatClient,
    ChatResponse,
    ChatResponseUpdate,
    Content,
    FunctionTool,
    Message,
    tool,
)
from agent_framework.exceptions import ChatClientException
from agent_framework.openai import OpenAIChatCompletionClient
from openai import AsyncOpenAI
from pydantic import BaseModel

from lightningrl.schema import StepKind
from lightningrl_agent_framework import AgentFrameworkAdapter
from lightningrl_testkit.lab import (
    LOOKUP_DESCRIPTION,
    MODEL,
    CaptureLab,
    in_threads_of_users,
    lookup,
    open_lab,
)
from lightningrl_testkit.model_server import Answer, ToolCall, in_turn
from lightningrl_testkit.runner_process import captured, tell_address

LOOKUP = FunctionTool(name="lookup", description=LOOKUP_DESCRIPTION, func=lookup)


@pytest.fixture
async def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[CaptureLab]:
    with captured(AgentFrameworkAdapter()):
        async with open_lab(tmp_path) as lab:
            tell_address(monkeypatch, lab.rig.url)
            yield lab


@pytest.fixture
async def client() -> AsyncIterator[OpenAIChatCompletionClient]:
    async with AsyncOpenAI(max_retries=0) as inner:
        yield OpenAIChatCompletionClient(model=MODEL, async_client=inner)


@pytest.fixture
def worker(lab: CaptureLab, client: OpenAIChatCompletionClient) -> Agent:
    return Agent(client, name="worker", tools=[LOOKUP])


async def test_one_agent_serves_32_rollouts_at_once_half_of_them_streamed(
    lab: CaptureLab, worker: Agent
) -> None:
    async def one(number: int) -> None:
        async with lab.attempt() as context:
            if number % 2:
                async for _ in worker.run(f"use key-{number}", stream=True):
                    pass
            else:
                await worker.run(f"use key-{number}")
        found = await lab.recorded(context)
        assert found.whole
        assert found.callers == ["worker", "worker"]
        [used] = found.of(StepKind.TOOL)
        assert used.inputs == {"key": f"key-{number}"}
        assert all(f"key-{number}" in call.request.decode() for call in found.calls)

    await asyncio.gather(*(one(number) for number in range(32)))


async def test_a_stream_that_is_left_leaves_nothing_open_and_nothing_current(
    lab: CaptureLab, worker: Agent
) -> None:
    async with lab.attempt() as context:
        stream = worker.run("hello there", stream=True)
        async for _ in stream:
            break
        await worker.run("hello again")
    found = await lab.recorded(context)
    assert {one.step_id for one in found.starts} == set(found.ends)
    [first, second] = found.of(StepKind.AGENT)
    assert (first.parent_id, second.parent_id) == (None, None)


async def test_a_stream_that_is_closed_ends_its_steps_then(lab: CaptureLab, worker: Agent) -> None:
    async with lab.attempt() as context:
        async with worker.run("hello there", stream=True) as stream:
            async for _ in stream:
                break
        seen = lab.emitted(context)
    assert [one.kind for one in seen.starts] == [StepKind.AGENT, StepKind.LLM]
    assert [seen.ends[one.step_id].error for one in seen.starts] == [None, None]


async def test_a_stream_read_in_another_task_is_of_the_rollout_that_began_it(
    lab: CaptureLab, worker: Agent
) -> None:
    async def read(stream: Any) -> None:
        async for _ in stream:
            pass

    async with lab.attempt() as context:
        await asyncio.create_task(read(worker.run("use a", stream=True)))
    found = await lab.recorded(context)
    assert found.whole
    assert found.callers == ["worker", "worker"]


async def test_a_stream_that_fails_is_a_failed_step(lab: CaptureLab, worker: Agent) -> None:
    async with lab.attempt() as context:
        with pytest.raises(Exception, match="told to fail"):
            async for _ in worker.run("fail now", stream=True):
                pass
    found = await lab.recorded(context)
    [call] = found.of(StepKind.LLM)
    assert "told to fail" in str(found.ends[call.step_id].error)
    assert {one.step_id for one in found.starts} == set(found.ends)


async def test_a_cancelled_run_ends_its_steps(lab: CaptureLab, worker: Agent) -> None:
    async with lab.attempt() as context:
        lab.model.block()
        running = asyncio.create_task(worker.run("hello"))
        await lab.model.arrived(1)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        lab.model.unblock()
    found = await lab.recorded(context)
    assert {one.step_id for one in found.starts} == set(found.ends)
    [call] = found.of(StepKind.LLM)
    assert "CancelledError" in str(found.ends[call.step_id].error)


async def test_a_session_goes_on_in_another_rollout_as_steps_of_its_own(
    lab: CaptureLab, worker: Agent
) -> None:
    session = AgentSession()
    shapes: list[Any] = []
    for prompt in ("hello", "hello again"):
        async with lab.attempt() as context:
            await worker.run(prompt, session=session)
        found = await lab.recorded(context)
        assert found.whole
        shapes.append(found.shape())
    assert shapes[0] == shapes[1]
    [call] = found.calls
    assert b"hello again" in call.request


async def test_a_plain_function_as_a_tool_runs_in_its_step(
    lab: CaptureLab, client: OpenAIChatCompletionClient
) -> None:
    @tool
    def shout(key: str) -> str:
        """Say it loud."""
        return key.upper()

    async with lab.attempt() as context:
        await Agent(client, name="worker", tools=[shout]).run("use quiet")
    found = await lab.recorded(context)
    [used] = found.of(StepKind.TOOL)
    assert (used.name, used.inputs, used.agent) == ("shout", {"key": "quiet"}, "worker")
    assert "QUIET" in str(found.ends[used.step_id].output)


async def test_a_tool_that_waits_for_approval_is_a_step_when_it_runs(
    lab: CaptureLab, client: OpenAIChatCompletionClient
) -> None:
    asking = FunctionTool(
        name="lookup",
        description=LOOKUP_DESCRIPTION,
        func=lookup,
        approval_mode="always_require",
    )
    async with lab.attempt() as context:
        answer = await Agent(client, name="worker", tools=[asking]).run("use a")
    found = await lab.recorded(context)
    assert [one.type for one in answer.user_input_requests] == ["function_approval_request"]
    assert found.whole
    assert found.of(StepKind.TOOL) == []


async def test_an_agent_without_a_name_is_called_by_its_class(
    lab: CaptureLab, client: OpenAIChatCompletionClient
) -> None:
    async with lab.attempt() as context:
        await Agent(client).run("hello")
    found = await lab.recorded(context)
    assert found.callers == ["Agent"]


async def test_a_client_on_its_own_is_a_call_of_nobody(
    lab: CaptureLab, client: OpenAIChatCompletionClient
) -> None:
    async with lab.attempt() as context:
        await client.get_response("hello")
    found = await lab.recorded(context)
    assert found.whole
    assert found.callers == [None]


# -- what goes wrong, and what is no plain answer --------------------------------------------------


class Parrot(BaseChatClient):
    """A model of another provider, which has no address here."""

    def _inner_get_response(self, *, stream: bool, **_: Any) -> Any:
        if stream:
            return self._build_response_stream(self._updates())
        return self._respond()

    async def _respond(self) -> ChatResponse:
        return ChatResponse(messages=[Message(role="assistant", contents=["so you say"])])

    async def _updates(self) -> AsyncIterator[ChatResponseUpdate]:
        for text in ("so ", "you say"):
            yield ChatResponseUpdate(role="assistant", contents=[Content.from_text(text=text)])


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
async def test_another_providers_client_is_a_step_without_a_call(
    stream: bool, lab: CaptureLab
) -> None:
    agent = Agent(Parrot(), name="bird")
    async with lab.attempt() as context:
        if stream:
            async for _ in agent.run("hello", stream=True):
                pass
        else:
            await agent.run("hello")
    found = await lab.recorded(context)
    [step] = found.of(StepKind.LLM)
    assert (step.name, step.agent) == ("Parrot", "bird")
    assert found.calls == []
    assert {one.step_id for one in found.starts} == set(found.ends)


async def test_arguments_that_are_no_json_are_an_error_of_the_tool(
    lab: CaptureLab, worker: Agent
) -> None:
    call = ToolCall("call-1", "lookup", '{"key": ')
    lab.model.script = in_turn(Answer(tool_calls=(call,)), "sorry")
    async with lab.attempt() as context:
        await worker.run("use a")
    found = await lab.recorded(context)
    [used] = found.of(StepKind.TOOL)
    assert (used.name, used.inputs, used.tool_call_id) == ("lookup", '{"key": ', "call-1")
    assert found.ends[used.step_id].error is not None
    assert found.whole


async def test_arguments_that_the_framework_fails_at_are_a_failed_step(
    lab: CaptureLab, worker: Agent
) -> None:
    call = ToolCall("call-1", "lookup", "[" * 100_000)
    lab.model.script = in_turn(Answer(tool_calls=(call,)), "sorry")
    async with lab.attempt() as context:
        with pytest.raises(RecursionError):
            await worker.run("use a")
    found = await lab.recorded(context)
    [used] = found.of(StepKind.TOOL)
    assert used.inputs == call.arguments
    assert "RecursionError" in (found.ends[used.step_id].error or "")


async def test_a_structured_answer_is_a_joined_call(
    lab: CaptureLab, client: OpenAIChatCompletionClient
) -> None:
    class Place(BaseModel):
        city: str

    lab.model.script = in_turn('{"city": "Paris"}')
    async with lab.attempt() as context:
        answer = await Agent(client, name="guide").run("hello", options={"response_format": Place})
    found = await lab.recorded(context)
    assert answer.value == Place(city="Paris")
    assert found.whole
    assert found.callers == ["guide"]


async def test_a_thread_that_the_user_starts_is_refused_unless_bound(lab: CaptureLab) -> None:
    outcomes: list[str] = []

    async def ask() -> None:
        async with AsyncOpenAI(max_retries=0) as inner:
            agent = Agent(OpenAIChatCompletionClient(model=MODEL, async_client=inner), name="a")
            try:
                outcomes.append((await agent.run("hello")).text)
            except ChatClientException as error:
                outcomes.append(str(error))

    def work() -> None:
        asyncio.run(ask())

    async with lab.attempt() as context:
        await in_threads_of_users(work)
    assert "belongs to no rollout" in outcomes[0]
    assert outcomes[1] == "done: hello"
    assert (await lab.recorded(context)).callers == ["a"]
