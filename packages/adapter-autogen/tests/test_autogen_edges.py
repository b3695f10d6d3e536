"""AutoGen's other teams, memories, code executors, caches, dumped components, and what is refused."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from autogen_agentchat.agents import AssistantAgent, CodeExecutorAgent, SocietyOfMindAgent
from autogen_agentchat.conditions import MaxMessageTermination
from autogen_agentchat.teams import (
    DiGraphBuilder,
    GraphFlow,
    MagenticOneGroupChat,
    RoundRobinGroupChat,
    Swarm,
)
from autogen_agentchat.tools import TeamTool
from autogen_core import SingleThreadedAgentRuntime
from autogen_core.memory import ListMemory, MemoryContent, MemoryMimeType
from autogen_ext.code_executors.local import LocalCommandLineCodeExecutor
from autogen_ext.models.cache import ChatCompletionCache
from autogen_ext.models.openai import OpenAIChatCompletionClient
from openai import AuthenticationError
from pydantic import BaseModel

from lightningrl.schema import StepKind
from lightningrl_autogen import capture_client
from lightningrl_testkit.autogen_client import autogen_client
from lightningrl_testkit.lab import CaptureLab, Recorded, in_threads_of_users
from lightningrl_testkit.model_server import Answer, Script, ToolCall

PARSED = pytest.mark.filterwarnings("ignore:Pydantic serializer warnings:UserWarning")
"""AutoGen logs answers that openai has parsed in a way that pydantic warns of."""

ABLE: dict[str, Any] = {
    "json_output": True,
    "structured_output": True,
    "multiple_system_messages": True,
}
"""What agents here ask of a model beside tools."""


def ledger(next_speaker: str, *, done: bool) -> str:
    """What Magentic-One's orchestrator is to be told."""
    answers = {
        "is_request_satisfied": done,
        "is_in_loop": False,
        "is_progress_being_made": True,
        "next_speaker": next_speaker,
        "instruction_or_question": "go on",
    }
    return json.dumps({name: {"reason": "", "answer": one} for name, one in answers.items()})


def script(request: dict[str, Any]) -> Answer:
    """Orchestrators get plans and ledgers; "call NAME JSON; ..." calls tools once; else "ok"."""
    messages = request["messages"]
    texts = [one.get("content") or "" for one in messages]
    if "please output an answer in pure json" in texts[-1].lower():
        return Answer(ledger("worker", done="ok" in texts))
    if request.get("response_format"):
        return Answer(json.dumps({"city": "Paris"}))
    if "pre-survey" in texts[-1] or "bullet-point plan" in texts[-1]:
        return Answer("a plan")
    prompt = next((text for text in texts if text.startswith("call ")), "")
    if prompt and request.get("tools") and not any(one["role"] == "tool" for one in messages):
        wanted = [one.split(" ", 2)[1:] for one in prompt.split("; ")]
        return Answer(
            tool_calls=tuple(ToolCall(f"call-{at}", *one) for at, one in enumerate(wanted, 1))
        )
    return Answer("ok")


@pytest.fixture
def model() -> Script:
    return script


@pytest.fixture
async def client(lab: CaptureLab) -> AsyncIterator[OpenAIChatCompletionClient]:
    """One client, without a rollout of its own: all rollouts of a test share it."""
    async with autogen_client(**ABLE) as client:
        yield client


async def weather(city: str) -> str:
    """The weather of a city."""
    return f"sunny in {city}"


# -- teams -----------------------------------------------------------------------------------------


@PARSED
async def test_magentic_ones_orchestrator_has_its_own_calls(
    lab: CaptureLab, client: OpenAIChatCompletionClient
) -> None:
    async def team() -> None:
        worker = AssistantAgent("worker", client, description="works")
        await MagenticOneGroupChat([worker], client, max_turns=3).run(task="hello")

    found = await lab.record(team)
    orchestrator = "MagenticOneOrchestrator"
    # Facts, plan, ledger; the worker; a ledger that is satisfied, and the final answer.
    assert found.callers == [*[orchestrator] * 3, "worker", *[orchestrator] * 2]
    assert found.whole


async def test_a_graphs_branches_run_at_once_and_join(
    lab: CaptureLab, client: OpenAIChatCompletionClient
) -> None:
    async def team() -> None:
        first, left, right, last = (
            AssistantAgent(name, client) for name in ("first", "left", "right", "last")
        )
        graph = DiGraphBuilder().add_node(first).add_node(left).add_node(right).add_node(last)
        for start, end in ((first, left), (first, right), (left, last), (right, last)):
            graph.add_edge(start, end)
        flow = GraphFlow(graph.get_participants(), graph.build())
        await flow.run(task="hello")

    found = await lab.record(team)
    agents = found.callers
    assert (agents[0], sorted(agents[1:3], key=str), agents[3]) == (
        "first",
        ["left", "right"],
        "last",
    )
    assert found.whole


async def test_a_team_as_a_tool_hangs_below_its_call(
    lab: CaptureLab, client: OpenAIChatCompletionClient
) -> None:
    async def team() -> None:
        inner = RoundRobinGroupChat(
            [AssistantAgent(name, client) for name in ("alice", "bob")], max_turns=2
        )
        tool = TeamTool(inner, "ask_team", "Asks the team.", return_value_as_last_message=True)
        outer = AssistantAgent("outer", client, tools=[tool], max_tool_iterations=2)
        await outer.run(task='call ask_team {"task": "hello"}')

    found = await lab.record(team)
    assert found.callers == ["outer", "alice", "bob", "outer"]
    [tool] = found.of(StepKind.TOOL)
    below = [
        one.agent
        for one in found.of(StepKind.LLM)
        if tool.step_id in [up.step_id for up in found.ancestors(one.step_id)]
    ]
    assert below == ["alice", "bob"]
    assert found.whole


async def test_a_society_of_mind_is_an_agent_around_its_team(
    lab: CaptureLab, client: OpenAIChatCompletionClient
) -> None:
    async def team() -> None:
        inner = RoundRobinGroupChat([AssistantAgent("alice", client)], max_turns=1)
        await SocietyOfMindAgent("mind", inner, client).run(task="hello")

    found = await lab.record(team)
    assert found.callers == ["alice", "mind"]
    [inner] = [one for one in found.of(StepKind.AGENT) if one.name == "alice"]
    assert [up.name for up in found.ancestors(inner.step_id)] == ["mind"]
    assert found.whole


async def test_16_teams_on_one_runtime_share_one_client_and_never_mix(
    lab: CaptureLab, client: OpenAIChatCompletionClient
) -> None:
    """The runtime was started before all rollouts; a message is handled in the rollout of its sender."""
    runtime = SingleThreadedAgentRuntime()
    runtime.start()

    async def rollout(index: int) -> Recorded:
        members = [
            AssistantAgent("alice", client, tools=[weather], model_client_stream=index % 2 == 0),
            AssistantAgent("bob", client, model_client_stream=index % 3 == 0),
        ]
        team = RoundRobinGroupChat(members, max_turns=2, runtime=runtime)
        return await lab.record(lambda: team.run(task=f'call weather {{"city": "city-{index}"}}'))

    results = await asyncio.gather(*(rollout(index) for index in range(16)))
    await runtime.stop()
    for index, found in enumerate(results):
        assert found.callers == ["alice", "bob"]
        assert all(f'city-{index}\\"' in one.request.decode() for one in found.calls)
        [tool] = found.of(StepKind.TOOL)
        assert tool.inputs == {"city": f"city-{index}"}
        assert found.whole


async def test_a_handoff_loop_gives_each_turn_its_agent(
    lab: CaptureLab, client: OpenAIChatCompletionClient
) -> None:
    async def team() -> None:
        ping = AssistantAgent("ping", client, handoffs=["pong"])
        pong = AssistantAgent("pong", client, handoffs=["ping"])
        end = MaxMessageTermination(3)
        await Swarm([ping, pong], termination_condition=end).run(task="call transfer_to_pong {}")

    found = await lab.record(team)
    assert found.callers == ["ping", "pong"]
    assert [(one.name, one.agent) for one in found.of(StepKind.HANDOFF)] == [
        ("transfer_to_pong", "ping")
    ]


# -- tools, memories, code -------------------------------------------------------------------------


async def test_parallel_tools_keep_their_ids_and_outputs(
    lab: CaptureLab, client: OpenAIChatCompletionClient
) -> None:
    cities = ("Paris", "Rome", "Oslo")
    prompt = "; ".join(f'call weather {{"city": "{city}"}}' for city in cities)
    agent = AssistantAgent("a", client, tools=[weather])
    found = await lab.record(lambda: agent.run(task=prompt))
    assert [
        (one.tool_call_id, found.ends[one.step_id].output) for one in found.of(StepKind.TOOL)
    ] == [(f"call-{at}", f"sunny in {city}") for at, city in enumerate(cities, 1)]


async def test_a_memory_is_asked_before_the_model(
    lab: CaptureLab, client: OpenAIChatCompletionClient
) -> None:
    content = MemoryContent(content="the user likes tea", mime_type=MemoryMimeType.TEXT)
    agent = AssistantAgent("a", client, memory=[ListMemory("notes", [content])])
    found = await lab.record(lambda: agent.run(task="hello"))
    [retrieval] = found.of(StepKind.RETRIEVAL)
    assert (retrieval.name, retrieval.agent) == ("notes", "a")
    assert found.ends[retrieval.step_id].output == ["the user likes tea"]
    assert "the user likes tea" in found.calls[0].request.decode()
    assert found.whole


@pytest.mark.filterwarnings(
    "ignore:Using LocalCommandLineCodeExecutor:UserWarning",
    "ignore:No approval function set:UserWarning",
)
@pytest.mark.parametrize(
    ("code", "output", "error"),
    [("print(6 * 7)", "42\n", None), ("raise SystemExit(3)", None, "exit code 3")],
)
async def test_code_that_an_agent_runs_is_a_tool_step(
    lab: CaptureLab, tmp_path: Path, code: str, output: str | None, error: str | None
) -> None:
    executor = LocalCommandLineCodeExecutor(work_dir=tmp_path)
    agent = CodeExecutorAgent("runner", executor, sources=["user"])
    found = await lab.record(lambda: agent.run(task=f"```python\n{code}\n```"))
    [tool] = found.of(StepKind.TOOL)
    end = found.ends[tool.step_id]
    assert (tool.name, tool.agent) == ("execute_code", "runner")
    assert tool.inputs == [{"code": f"{code}\n", "language": "python"}]
    assert end.output == output
    assert (end.error or "").startswith(error or "")


# -- clients ---------------------------------------------------------------------------------------


async def test_an_answer_from_a_cache_is_a_step_without_a_call(
    lab: CaptureLab, client: OpenAIChatCompletionClient
) -> None:
    cache = ChatCompletionCache(client)

    async def twice() -> None:
        for stream in (False, False):
            agent = AssistantAgent("a", cache, model_client_stream=stream)
            await agent.run(task="hello")

    found = await lab.record(twice)
    assert len(found.calls) == 1
    asked, cached = found.of(StepKind.LLM)
    assert found.calls[0].step_id == asked.step_id
    assert (cached.agent, found.ends[cached.step_id].error) == ("a", None)


async def test_a_dumped_team_is_loaded_without_us_and_is_captured_again(
    lab: CaptureLab, client: OpenAIChatCompletionClient
) -> None:
    """Also one whose client was wrapped: what is dumped is the user's own."""
    members = [AssistantAgent(name, capture_client(client, name)) for name in ("alice", "bob")]
    dumped = RoundRobinGroupChat(members, max_turns=2).dump_component()
    assert "lightningrl" not in dumped.model_dump_json().replace("lightningrl-placeholder", "")
    loaded = RoundRobinGroupChat.load_component(dumped)
    found = await lab.record(lambda: loaded.run(task="hello"))
    assert found.callers == ["alice", "bob"]
    assert found.whole
    for member in loaded._participants:
        await member._model_client.close()


@PARSED
async def test_structured_output_is_a_joined_call(
    lab: CaptureLab, client: OpenAIChatCompletionClient
) -> None:
    class City(BaseModel):
        city: str

    agent = AssistantAgent("a", client, output_content_type=City)
    async with lab.attempt() as context:
        result = await agent.run(task="hello")
    found = await lab.recorded(context)
    assert result.messages[-1].content == City(city="Paris")
    assert found.whole


async def test_breaking_out_of_a_stream_leaves_nothing_open(
    lab: CaptureLab, client: OpenAIChatCompletionClient
) -> None:
    async with lab.attempt() as context:
        agent = AssistantAgent("a", client, model_client_stream=True)
        stream = agent.run_stream(task="hello")
        async for _ in stream:
            break
        await stream.aclose()
    found = await lab.recorded(context)
    assert {one.step_id for one in found.starts} == set(found.ends)


async def test_a_thread_that_the_user_starts_is_refused_unless_bound(lab: CaptureLab) -> None:
    outcome: list[str] = []

    async def ask() -> None:
        async with autogen_client() as client:
            try:
                result = await AssistantAgent("a", client).run(task="hello")
                outcome.append(result.messages[-1].to_text())
            except AuthenticationError as error:
                outcome.append(str(error))

    def work() -> None:
        asyncio.run(ask())

    async with lab.attempt() as context:
        await in_threads_of_users(work)
    assert "belongs to no rollout" in outcome[0]
    assert outcome[1] == "ok"
    assert (await lab.recorded(context)).callers == ["a"]
