"""One agent of each framework, with one tool, as its users write it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

from lightningrl_testkit.lab import MODEL, lookup

Run = Callable[[str], Awaitable[object]]
"""Runs the agent on a prompt."""


@asynccontextmanager
async def langchain() -> AsyncGenerator[Run]:
    """An agent of LangChain's `create_agent`, which is a graph of LangGraph."""
    from langchain.agents import create_agent
    from langchain_core.tools import StructuredTool
    from langchain_openai import ChatOpenAI

    tool = StructuredTool.from_function(coroutine=lookup, name="lookup")
    agent: Any = create_agent(ChatOpenAI(model=MODEL), [tool], name="worker")
    yield lambda prompt: agent.ainvoke({"messages": prompt})


@asynccontextmanager
async def openai_agents() -> AsyncGenerator[Run]:
    """An agent of the OpenAI Agents SDK, over chat completions."""
    from agents import Agent, OpenAIProvider, RunConfig, Runner, function_tool
    from openai import AsyncOpenAI

    agent = Agent(name="worker", model=MODEL, tools=[function_tool(lookup)])
    async with AsyncOpenAI() as client:
        config = RunConfig(model_provider=OpenAIProvider(openai_client=client, use_responses=False))
        yield lambda prompt: Runner.run(agent, prompt, run_config=config)


@asynccontextmanager
async def autogen() -> AsyncGenerator[Run]:
    """An assistant of AutoGen; a new one for each run, since it keeps its conversation."""
    from autogen_agentchat.agents import AssistantAgent

    from lightningrl_testkit.autogen_client import autogen_client

    async with autogen_client() as client:

        async def run(prompt: str) -> object:
            agent = AssistantAgent(
                "worker", model_client=client, tools=[lookup], reflect_on_tool_use=True
            )
            return await agent.run(task=prompt)

        yield run


@asynccontextmanager
async def agent_framework() -> AsyncGenerator[Run]:
    """An agent of the Microsoft Agent Framework."""
    from agent_framework import Agent, FunctionTool
    from agent_framework.openai import OpenAIChatCompletionClient
    from openai import AsyncOpenAI

    async with AsyncOpenAI() as client:
        tool = FunctionTool(name="lookup", description="Look up a key.", func=lookup)
        agent = Agent(
            OpenAIChatCompletionClient(model=MODEL, async_client=client),
            name="worker",
            tools=[tool],
        )
        yield lambda prompt: agent.run(prompt)


AGENTS: dict[str, Callable[[], AbstractAsyncContextManager[Run]]] = {
    "agent-framework": agent_framework,
    "autogen": autogen,
    "langchain": langchain,
    "openai-agents": openai_agents,
}
"""By the name of their adapter."""
