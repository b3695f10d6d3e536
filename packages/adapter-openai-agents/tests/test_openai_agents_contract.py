"""The OpenAI Agents SDK passes the adapter contract, over either of OpenAI's interfaces."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import ClassVar

import pytest
from agents import Agent, OpenAIProvider, RunConfig, Runner, function_tool
from openai import AsyncOpenAI

from lightningrl_openai_agents import OpenAIAgentsAdapter
from lightningrl_testkit.adapter import AdapterContract
from lightningrl_testkit.examples import ExampleAgents
from lightningrl_testkit.lab import LOOKUP_DESCRIPTION, MODEL, lookup

LOOKUP = function_tool(lookup, description_override=LOOKUP_DESCRIPTION)

ASKER = Agent(name="asker", model=MODEL)
WORKER = Agent(name="worker", model=MODEL, tools=[LOOKUP])
INNER = Agent(name="inner", model=MODEL, tools=[LOOKUP])
OUTER = Agent(
    name="outer", model=MODEL, tools=[INNER.as_tool("ask_inner", "Asks the inner agent.")]
)
SECOND = Agent(name="second", model=MODEL)
FIRST = Agent(name="first", model=MODEL, handoffs=[SECOND])


class SdkAgents(ExampleAgents):
    """Agents are objects of the module, which all rollouts of all tests share."""

    packages = ("agents",)

    def __init__(self, *, responses: bool) -> None:
        """Over the Responses interface, else over chat completions."""
        self._responses = responses

    def make_adapter(self) -> OpenAIAgentsAdapter:
        return OpenAIAgentsAdapter()

    async def ask(self, prompt: str, *, stream: bool = False) -> str:
        return await self._run(ASKER, prompt, stream=stream)

    async def ask_with_tool(self, prompt: str, *, stream: bool = False) -> str:
        return await self._run(WORKER, prompt, stream=stream)

    async def ask_through_sub_agent(self, prompt: str) -> str:
        return await self._run(OUTER, prompt)

    async def hand_off(self, prompt: str) -> str:
        return await self._run(FIRST, prompt)

    async def _run(self, agent: Agent, prompt: str, *, stream: bool = False) -> str:
        async with self._run_config() as config:
            if not stream:
                return str((await Runner.run(agent, prompt, run_config=config)).final_output)
            result = Runner.run_streamed(agent, prompt, run_config=config)
            async for _ in result.stream_events():
                pass
            return str(result.final_output)

    @asynccontextmanager
    async def _run_config(self) -> AsyncGenerator[RunConfig]:
        async with AsyncOpenAI(max_retries=0, timeout=60.0) as client:
            yield RunConfig(
                model_provider=OpenAIProvider(openai_client=client, use_responses=self._responses)
            )


GAPS = {"a_retrieval_is_a_step": "the SDK has no retrievers; a vendor's file search runs there"}


class TestChatCompletions(AdapterContract):
    """Each claim of the contract, with `OpenAIChatCompletionsModel`."""

    gaps: ClassVar[dict[str, str]] = GAPS

    @pytest.fixture
    def agents(self) -> SdkAgents:
        return SdkAgents(responses=False)


class TestResponses(AdapterContract):
    """Each claim of the contract, with `OpenAIResponsesModel`, which the SDK takes by default."""

    gaps: ClassVar[dict[str, str]] = GAPS | {
        "outside_a_rollout_a_call_leaves_as_the_agent_made_it": (
            "the scripted model server, without our gateway, speaks chat completions only"
        )
    }

    @pytest.fixture
    def agents(self) -> SdkAgents:
        return SdkAgents(responses=True)
