"""AutoGen beyond the contract: teams, runtimes, handoffs, threads, cancelling, and undoing it all."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from autogen_agentchat.agents import AssistantAgent, BaseChatAgent
from autogen_agentchat.base import Response
from autogen_agentchat.conditions import MaxMessageTermination
from autogen_agentchat.messages import BaseChatMessage, TextMessage
from autogen_agentchat.teams import RoundRobinGroupChat, SelectorGroupChat, Swarm
from autogen_core import CancellationToken, SingleThreadedAgentRuntime
from autogen_core.models import ChatCompletionClient
from autogen_core.tools import FunctionTool
from autogen_ext.models.openai import OpenAIChatCompletionClient
from autogen_ext.models.replay import ReplayChatCompletionClient

import lightningrl
from lightningrl.capture.context import current, in_rollout
from lightningrl.errors import AgentError, ConfigError
from lightningrl.schema import StepKind
from lightningrl_autogen import AutoGenAdapter, capture_client
from lightningrl_testkit.autogen_client import autogen_client
from lightningrl_testkit.lab import CaptureLab, Recorded
from lightningrl_testkit.model_server import Answer, Script, ToolCall


def script(request: dict[str, Any]) -> Answer:
    """Speaker selection gets "bob"; an offered tool is called once, as the prompt says; else "ok"."""
    texts = [one.get("content") or "" for one in request["messages"]]
    if any("select the next role" in text for text in texts):
        return Answer("bob")
    tools = request.get("tools") or []
    if tools and not any(one["role"] == "tool" for one in request["messages"]):
        prompt = next(text for text in texts if text.startswith("call "))
        _, name, arguments = prompt.split(" ", 2)
        return Answer(tool_calls=(ToolCall("call-1", name, arguments),))
    return Answer("ok")


@pytest.fixture
def model() -> Script:
    return script


# -- teams and runtimes ----------------------------------------------------------------------------


async def test_each_member_of_a_team_has_its_own_steps(lab: CaptureLab) -> None:
    async def agent() -> None:
        async with autogen_client() as client:
            members = [AssistantAgent(name, model_client=client) for name in ("alice", "bob")]
            await RoundRobinGroupChat(members, max_turns=2).run(task="hello")

    found = await lab.record(agent)
    assert found.callers == ["alice", "bob"]
    assert [one.name for one in found.of(StepKind.AGENT)] == ["alice", "bob"]
    assert found.whole


async def test_a_speaker_is_selected_by_the_manager_not_by_a_member(lab: CaptureLab) -> None:
    async def agent() -> None:
        async with autogen_client() as client:
            members = [
                AssistantAgent(name, model_client=client, description=name)
                for name in ("alice", "bob", "carol")
            ]
            await SelectorGroupChat(members, model_client=client, max_turns=1).run(task="hello")

    found = await lab.record(agent)
    assert found.callers == ["SelectorGroupChatManager", "bob"]
    assert found.whole


async def test_rollouts_on_one_runtime_that_outlives_them_never_mix(lab: CaptureLab) -> None:
    """The runtime's task was started before all rollouts, and the client is shared by all of them."""
    runtime = SingleThreadedAgentRuntime()
    runtime.start()

    async def rollout(index: int, client: ChatCompletionClient) -> tuple[int, Recorded]:
        members = [AssistantAgent(name, model_client=client) for name in ("alice", "bob")]
        team = RoundRobinGroupChat(members, max_turns=2, runtime=runtime)
        return index, await lab.record(lambda: team.run(task=f"task-{index}"))

    async with autogen_client() as client:
        results = await asyncio.gather(*(rollout(index, client) for index in range(8)))
    await runtime.stop()
    for index, found in results:
        assert found.callers == ["alice", "bob"]
        assert all(f"task-{index}" in one.request.decode() for one in found.calls)
        assert found.whole


async def test_a_runtime_started_in_a_rollout_does_not_keep_it(lab: CaptureLab) -> None:
    runtime = SingleThreadedAgentRuntime()
    async with lab.attempt() as first:
        runtime.start()
        async with autogen_client() as client:
            with in_rollout(None):
                team = RoundRobinGroupChat(
                    [AssistantAgent("alice", model_client=client)], max_turns=1, runtime=runtime
                )
                with pytest.raises(RuntimeError, match="belongs to no rollout"):
                    await team.run(task="hello")
    await runtime.stop()
    assert (await lab.recorded(first)).events == []


async def test_a_custom_agent_is_one_step_however_it_is_run(lab: CaptureLab) -> None:
    class Custom(BaseChatAgent):
        """Defined after the adapter was installed, and overriding the plain method only."""

        produced_message_types = (TextMessage,)

        async def on_messages(
            self, messages: Any, cancellation_token: CancellationToken
        ) -> Response:
            lightningrl.reward(1.0)
            return Response(chat_message=TextMessage(content="done", source=self.name))

        async def on_reset(self, cancellation_token: CancellationToken) -> None: ...

    async def agent() -> None:
        await Custom("custom", "described").run(task="hello")
        async for _ in Custom("custom", "described").run_stream(task="hello"):
            pass

    found = await lab.record(agent)
    assert [(one.name, one.parent_id) for one in found.starts] == [("custom", None)] * 2
    assert [one.step_id for one in found.rewards] == [one.step_id for one in found.starts]


# -- tools -----------------------------------------------------------------------------------------


async def tool_run(lab: CaptureLab, prompt: str, tool: Any) -> Recorded:
    async def agent() -> None:
        async with autogen_client() as client:
            await AssistantAgent("worker", model_client=client, tools=[tool]).run(task=prompt)

    return await lab.record(agent)


async def test_a_plain_function_in_autogens_executor_is_in_its_step(lab: CaptureLab) -> None:
    def double(number: int) -> int:
        lightningrl.reward(0.5)
        return 2 * number

    tool = FunctionTool(double, description="double")
    found = await tool_run(lab, 'call double {"number": 4}', tool)
    [step] = found.of(StepKind.TOOL)
    assert (step.inputs, found.ends[step.step_id].output) == ({"number": 4}, "8")
    assert [(one.step_id, one.value) for one in found.rewards] == [(step.step_id, 0.5)]


@pytest.mark.parametrize(
    ("prompt", "name", "inputs", "error"),
    [
        ("call unknown {}", "unknown", {}, "Error: tool 'unknown' not found in any workbench"),
        ('call double {"a', "double", '{"a', "Error: Unterminated string"),
    ],
)
async def test_calls_that_never_reach_a_tool_are_steps_with_errors(
    lab: CaptureLab, prompt: str, name: str, inputs: Any, error: str
) -> None:
    def double(number: int) -> int:
        return 2 * number

    found = await tool_run(lab, prompt, FunctionTool(double, description="double"))
    [step] = found.of(StepKind.TOOL)
    assert (step.name, step.inputs, step.tool_call_id) == (name, inputs, "call-1")
    assert (found.ends[step.step_id].error or "").startswith(error)


async def test_a_handoff_is_a_handoff(lab: CaptureLab) -> None:
    async def agent() -> None:
        async with autogen_client() as client:
            triage = AssistantAgent("triage", model_client=client, handoffs=["spanish"])
            spanish = AssistantAgent("spanish", model_client=client)
            swarm = Swarm([triage, spanish], termination_condition=MaxMessageTermination(3))
            await swarm.run(task="call transfer_to_spanish {}")

    found = await lab.record(agent)
    assert [(one.name, one.agent) for one in found.of(StepKind.HANDOFF)] == [
        ("transfer_to_spanish", "triage")
    ]
    assert found.of(StepKind.TOOL) == []
    assert found.callers == ["triage", "spanish"]


async def test_cancelling_ends_every_step_with_an_error(lab: CaptureLab) -> None:
    entered, left = asyncio.Event(), asyncio.Event()

    async def wait() -> str:
        entered.set()
        try:
            await asyncio.Event().wait()
        finally:
            left.set()
        return "never"

    async with lab.attempt() as context, autogen_client() as client:
        tool = FunctionTool(wait, description="wait")
        agent = AssistantAgent("worker", model_client=client, tools=[tool])
        token, before = CancellationToken(), asyncio.all_tasks()
        run = asyncio.ensure_future(agent.run(task="call wait {}", cancellation_token=token))
        await entered.wait()
        run.cancel()
        with pytest.raises(asyncio.CancelledError):
            await run
        # The tool is a task of its own, which AutoGen leaves running: this ends it.
        token.cancel()
        await left.wait()
        while tool_tasks := asyncio.all_tasks() - before - {asyncio.current_task()}:
            await asyncio.wait(tool_tasks)
    found = await lab.recorded(context)
    errors = {one.kind: found.ends[one.step_id].error for one in found.starts}
    assert errors == {"agent": "CancelledError", "llm": None, "tool": "CancelledError"}


# -- without patching ------------------------------------------------------------------------------


async def test_a_captured_client_names_its_agent_and_patches_nothing(
    lab: CaptureLab, adapter: AutoGenAdapter
) -> None:
    adapter.uninstall()

    async def agent() -> None:
        async with autogen_client() as client:
            captured = capture_client(client, agent="critic")
            await AssistantAgent("anyone", model_client=captured).run(task="hello")
            stream = AssistantAgent("anyone", model_client=captured, model_client_stream=True)
            await stream.run(task="hello")

    found = await lab.record(agent)
    assert found.callers == ["critic", "critic"]
    assert found.whole


async def test_a_client_of_another_provider_is_a_step_without_a_call(lab: CaptureLab) -> None:
    async def agent() -> None:
        client = ReplayChatCompletionClient(["recorded"])
        await AssistantAgent("actor", model_client=client).run(task="hello")

    found = await lab.record(agent)
    assert [(one.name, one.agent) for one in found.of(StepKind.LLM)] == [
        ("ReplayChatCompletionClient", "actor")
    ]
    assert found.calls == []


# -- running objects, installing, undoing ----------------------------------------------------------


def snapshot() -> dict[str, object]:
    """Every attribute of every class that the adapter touches."""
    classes = [BaseChatAgent, AssistantAgent, ChatCompletionClient, OpenAIChatCompletionClient]
    classes += [FunctionTool, SingleThreadedAgentRuntime, ReplayChatCompletionClient]
    classes += OpenAIChatCompletionClient.__mro__[1:2]
    return {f"{one}.{name}": value for one in classes for name, value in vars(one).items()}


def test_uninstalling_leaves_autogen_as_it_was() -> None:
    before = snapshot()
    adapter = AutoGenAdapter()
    adapter.install()
    assert snapshot() != before
    adapter.uninstall()
    assert snapshot() == before


async def test_a_fresh_object_is_run_and_its_last_message_is_the_output(lab: CaptureLab) -> None:
    outputs: list[Any] = []

    async def agent() -> None:
        async with autogen_client() as client:
            call = AutoGenAdapter().wrap(AssistantAgent("a", model_client=client), fresh=True)
            assert call is not None
            outputs.append(await call("hello"))

    await lab.record(agent)
    assert outputs == ["ok"]


async def test_a_shared_object_and_a_json_task_are_refused_with_the_remedy() -> None:
    agent = AssistantAgent("a", model_client=ReplayChatCompletionClient(["x"]))
    adapter = AutoGenAdapter()
    with pytest.raises(ConfigError, match=r"keeps its conversation.*function without parameters"):
        adapter.wrap(agent, fresh=False)
    call = adapter.wrap(agent, fresh=True)
    assert call is not None
    with pytest.raises(AgentError, match="name an `input:` function"):
        await call({"question": "x"})
    assert adapter.wrap("something else", fresh=False) is None


async def test_outside_a_rollout_autogen_is_untouched(lab: CaptureLab) -> None:
    message: BaseChatMessage | None = None
    client = ReplayChatCompletionClient(["recorded"])
    agent = AssistantAgent("actor", model_client=client, model_client_stream=True)
    async for item in agent.on_messages_stream(
        [TextMessage(content="x", source="user")], CancellationToken()
    ):
        message = item.chat_message if isinstance(item, Response) else message
    assert current() is None
    assert isinstance(message, TextMessage)
    assert json.dumps(message.content) == '"recorded"'
