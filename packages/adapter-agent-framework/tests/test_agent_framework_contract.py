"""The Microsoft Agent Framework passes the adapter contract."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import ClassVar

import pytest
from agent_framework import Agent, FunctionTool
from agent_framework.openai import OpenAIChatCompletionClient
from openai import AsyncOpenAI

from lightningrl_agent_framework import AgentFrameworkAdapter
from lightningrl_testkit.adapter import AdapterContract
from lightningrl_testkit.examples import ExampleAgents
from lightningrl_testkit.lab import LOOKUP_DESCRIPTION, MODEL, lookup

LOOKUP = FunctionTool(name="lookup", description=LOOKUP_DESCRIPTION, func=lookup)


@asynccontextmanager
async def chat_client() -> AsyncGenerator[OpenAIChatCompletionClient]:
    """A client as users build one: address and key come from the environment."""
    async with AsyncOpenAI(max_retries=0, timeout=60.0) as client:
        yield OpenAIChatCompletionClient(model=MODEL, async_client=client)


async def answer(agent: Agent, prompt: str, *, stream: bool = False) -> str:
    """The text of the agent's answer."""
    if not stream:
        return (await agent.run(prompt)).text
    return "".join([update.text async for update in agent.run(prompt, stream=True)])


class AgentFrameworkAgents(ExampleAgents):
    """Agents keep nothing of a run; each test's event loop has clients of its own."""

    packages = ("agent_framework", "agent_framework_openai")

    def make_adapter(self) -> AgentFrameworkAdapter:
        return AgentFrameworkAdapter()

    async def ask(self, prompt: str, *, stream: bool = False) -> str:
        async with chat_client() as client:
            return await answer(Agent(client, name="asker"), prompt, stream=stream)

    async def ask_with_tool(self, prompt: str, *, stream: bool = False) -> str:
        async with chat_client() as client:
            worker = Agent(client, name="worker", tools=[LOOKUP])
            return await answer(worker, prompt, stream=stream)

    async def ask_through_sub_agent(self, prompt: str) -> str:
        async with chat_client() as client:
            inner = Agent(client, name="inner", tools=[LOOKUP])
            outer = Agent(client, name="outer", tools=[inner.as_tool()])
            return await answer(outer, prompt)


class TestAgentFramework(AdapterContract):
    """Each claim of the contract, on the Microsoft Agent Framework."""

    gaps: ClassVar[dict[str, str]] = {
        "a_handoff_is_a_step": "handoffs are workflows of agent-framework-orchestrations",
        "a_retrieval_is_a_step": "the framework finds documents by tools and context providers alone",
    }

    @pytest.fixture
    def agents(self) -> AgentFrameworkAgents:
        return AgentFrameworkAgents()
