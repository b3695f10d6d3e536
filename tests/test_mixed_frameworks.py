"""Frameworks that share a process, an event loop, even a rollout: each call once, whole, in its rollout."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import agents
import pytest
from agents import Agent, OpenAIProvider, RunConfig, Runner, function_tool
from autogen_agentchat.agents import AssistantAgent
from autogen_agentchat.teams import RoundRobinGroupChat
from autogen_ext.models.openai import OpenAIChatCompletionClient
from langchain.agents import create_agent
from langchain_core.tools import StructuredTool
from langchain_openai import ChatOpenAI
from openai import AsyncOpenAI, DefaultAsyncHttpxClient, DefaultHttpxClient

from lightningrl.capture.adapters import find_adapters
from lightningrl.schema import StepKind
from lightningrl_testkit.autogen_client import autogen_client
from lightningrl_testkit.gateway import open_rig
from lightningrl_testkit.lab import MODEL, CaptureLab, Recorded, lookup, open_lab
from lightningrl_testkit.model_server import ModelServer
from lightningrl_testkit.runner_process import captured, tell_address

ROLLOUTS = 24
SNAPSHOT = "gpt-4o-mini-2024-07-18"


@pytest.fixture(autouse=True)
def adapters() -> Iterator[None]:
    """All that are installed, as a runner does it."""
    agents.set_trace_processors([])  # the SDK's exporter would leave this machine
    with captured(*find_adapters()):
        yield


@pytest.fixture
async def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[CaptureLab]:
    async with open_lab(tmp_path) as lab:
        tell_address(monkeypatch, lab.rig.url)
        yield lab


class Frameworks:
    """One agent, client and configuration of each framework, for all rollouts."""

    def __init__(
        self, sdk: AsyncOpenAI, autogen: OpenAIChatCompletionClient, langchain: ChatOpenAI
    ) -> None:
        self._configs = [
            RunConfig(model_provider=OpenAIProvider(openai_client=sdk, use_responses=responses))
            for responses in (False, True)
        ]
        self._autogen = autogen
        self._solver = Agent(name="solver", model=MODEL, tools=[function_tool(lookup)])
        found = StructuredTool.from_function(coroutine=lookup, name="lookup")
        self._graph = create_agent(langchain, [found], name="graph")

    async def solve(self, prompt: str, *, responses: bool) -> None:
        """With the Agents SDK: two calls of "solver" and a tool."""
        await Runner.run(self._solver, prompt, run_config=self._configs[responses])

    async def walk(self, prompt: str) -> None:
        """With LangGraph: two calls of "graph" and a tool."""
        await self._graph.ainvoke({"messages": prompt})

    async def discuss(self, prompt: str) -> None:
        """With AutoGen: two calls, of "alice", who uses a tool, and of "bob"."""
        members = [
            AssistantAgent("alice", self._autogen, tools=[lookup], model_client_stream=True),
            AssistantAgent("bob", self._autogen),
        ]
        await RoundRobinGroupChat(members, max_turns=2).run(task=prompt)


@pytest.fixture
async def frameworks(lab: CaptureLab) -> AsyncIterator[Frameworks]:
    with DefaultHttpxClient() as plain:
        async with (
            AsyncOpenAI() as sdk,
            DefaultAsyncHttpxClient() as http,
            autogen_client() as autogen,
        ):
            langchain = ChatOpenAI(model=MODEL, http_client=plain, http_async_client=http)
            yield Frameworks(sdk, autogen, langchain)


def check(found: Recorded, index: int, callers: list[str]) -> None:
    """All calls are `callers`', joined one to one, of rollout `index`, and nothing is left open."""
    assert [one.agent for one in found.calls] == callers
    assert sorted(found.joined) == sorted(one.step_id for one in found.of(StepKind.LLM))
    assert len(found.joined) == len(callers)
    assert {one.step_id for one in found.starts} == set(found.ends)
    for one in found.calls:
        assert f'key-{index}"' in one.request.decode()
    for tool in found.of(StepKind.TOOL):
        assert tool.inputs == {"key": f"key-{index}"}


async def test_24_rollouts_of_several_frameworks_never_mix(
    lab: CaptureLab, frameworks: Frameworks
) -> None:
    """Rollouts of one, two or three frameworks, one after another, all at once."""

    async def run(index: int) -> tuple[list[str], Recorded]:
        prompt, callers = f"use key-{index}", list[str]()
        async with lab.attempt() as context:
            if index % 3 != 1:
                await frameworks.solve(prompt, responses=index % 2 == 1)
                callers += ["solver", "solver"]
            if index % 3 != 0:
                await frameworks.discuss(prompt)
                callers += ["alice", "bob"]
            if index % 4 != 0:
                await frameworks.walk(prompt)
                callers += ["graph", "graph"]
        return callers, await lab.recorded(context)

    results = await asyncio.gather(*(run(index) for index in range(ROLLOUTS)))
    for index, (callers, found) in enumerate(results):
        check(found, index, callers)


async def test_an_agent_of_one_framework_runs_in_a_tool_of_another(
    lab: CaptureLab, frameworks: Frameworks
) -> None:
    @function_tool
    async def discuss(key: str) -> str:
        """Lets others discuss."""
        await frameworks.discuss(f"use {key}")
        return "discussed"

    async with AsyncOpenAI() as sdk:
        config = RunConfig(model_provider=OpenAIProvider(openai_client=sdk))
        outer = Agent(name="outer", model=MODEL, tools=[discuss])
        found = await lab.record(lambda: Runner.run(outer, "use key-7", run_config=config))
    assert [one.agent for one in found.calls] == ["outer", "alice", "bob", "outer"]
    assert len(found.of(StepKind.LLM)) == 4
    [asked] = [one for one in found.of(StepKind.TOOL) if one.name == "discuss"]
    for step in found.of(StepKind.LLM):
        around = [up.step_id for up in found.ancestors(step.step_id)]
        assert (asked.step_id in around) == (step.agent != "outer")


@pytest.mark.parametrize("framework", ["openai-agents", "autogen"])
async def test_each_agents_calls_go_to_its_policy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, framework: str
) -> None:
    """Both agents ask for one model; which policy answers is the agent's name."""
    async with AsyncExitStack() as stack:
        models = [stack.enter_context(ModelServer()) for _ in range(2)]
        rig = await stack.enter_async_context(open_rig(tmp_path))
        for model, name, agent in zip(models, ("a", "b"), ("alice", "bob"), strict=True):
            await rig.register(model.url, name=name, agents=(agent,))
        tell_address(monkeypatch, rig.url)
        sdk = await stack.enter_async_context(AsyncOpenAI())
        autogen = await stack.enter_async_context(autogen_client(SNAPSHOT))

        async def solve() -> None:
            config = RunConfig(model_provider=OpenAIProvider(openai_client=sdk))
            for name in ("alice", "bob"):
                await Runner.run(Agent(name=name, model=SNAPSHOT), "hello", run_config=config)

        async def discuss() -> None:
            members = [AssistantAgent(name, autogen) for name in ("alice", "bob")]
            await RoundRobinGroupChat(members, max_turns=2).run(task="hello")

        found = await CaptureLab(rig, models[0]).record(
            solve if framework == "openai-agents" else discuss
        )
    assert [(one.agent, one.policy) for one in found.calls] == [("alice", "a"), ("bob", "b")]
    assert [model.calls for model in models] == [1, 1]


async def test_an_agent_that_no_policy_serves_is_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The checker is not trained: its model has to be named, or to have an address of its own."""
    async with AsyncExitStack() as stack:
        model = stack.enter_context(ModelServer())
        rig = await stack.enter_async_context(open_rig(tmp_path))
        await rig.register(model.url, name="a", agents=("writer", "rewriter"))
        tell_address(monkeypatch, rig.url)
        sdk = await stack.enter_async_context(AsyncOpenAI())
        config = RunConfig(model_provider=OpenAIProvider(openai_client=sdk))
        checker = Agent(name="checker", model=SNAPSHOT)
        own = await stack.enter_async_context(AsyncOpenAI(base_url=model.url, api_key="own"))
        judge = Agent(
            name="checker", model=agents.OpenAIChatCompletionsModel("judge", openai_client=own)
        )
        lab = CaptureLab(rig, model)
        async with lab.attempt() as context:
            await Runner.run(Agent(name="writer", model=SNAPSHOT), "hello", run_config=config)
            with pytest.raises(Exception, match=f"'{SNAPSHOT}'.*asked for by agent 'checker'"):
                await Runner.run(checker, "hello", run_config=config)
            await Runner.run(judge, "hello")
        found = await lab.recorded(context)
    assert [(one.agent, one.policy) for one in found.calls] == [("writer", "a")]
    assert model.calls == 2
