"""AutoGen passes the adapter contract."""

from __future__ import annotations

import pytest
from autogen_agentchat.agents import AssistantAgent
from autogen_agentchat.conditions import TextMentionTermination
from autogen_agentchat.messages import TextMessage, ToolCallSummaryMessage
from autogen_agentchat.teams import Swarm
from autogen_agentchat.tools import AgentTool
from autogen_core.memory import ListMemory, MemoryContent, MemoryMimeType
from autogen_core.tools import FunctionTool
from autogen_ext.models.openai import OpenAIChatCompletionClient

from lightningrl_autogen import AutoGenAdapter
from lightningrl_testkit.adapter import AdapterContract
from lightningrl_testkit.autogen_client import autogen_client
from lightningrl_testkit.examples import ExampleAgents
from lightningrl_testkit.lab import LOOKUP_DESCRIPTION, lookup


def worker(
    name: str, client: OpenAIChatCompletionClient, *, stream: bool = False
) -> AssistantAgent:
    """An agent with the contract's tool."""
    return AssistantAgent(
        name,
        model_client=client,
        tools=[FunctionTool(lookup, description=LOOKUP_DESCRIPTION)],
        model_client_stream=stream,
        reflect_on_tool_use=False,
        max_tool_iterations=3,
    )


async def answer(agent: AssistantAgent, prompt: str) -> str:
    """The text of the agent's last message."""
    result = await agent.run(task=prompt)
    message = result.messages[-1]
    assert isinstance(message, TextMessage | ToolCallSummaryMessage)
    return message.content


class AutoGenAgents(ExampleAgents):
    """Agents and their clients keep a conversation, so each prompt gets its own."""

    packages = ("autogen_core", "autogen_agentchat", "autogen_ext")

    def make_adapter(self) -> AutoGenAdapter:
        return AutoGenAdapter()

    async def ask(self, prompt: str, *, stream: bool = False) -> str:
        async with autogen_client() as client:
            agent = AssistantAgent("asker", model_client=client, model_client_stream=stream)
            return await answer(agent, prompt)

    async def ask_with_tool(self, prompt: str, *, stream: bool = False) -> str:
        async with autogen_client() as client:
            return await answer(worker("worker", client, stream=stream), prompt)

    async def ask_through_sub_agent(self, prompt: str) -> str:
        async with autogen_client() as client:
            inner = AgentTool(worker("inner", client), return_value_as_last_message=True)
            outer = AssistantAgent(
                "outer", model_client=client, tools=[inner], max_tool_iterations=3
            )
            return await answer(outer, prompt)

    async def hand_off(self, prompt: str) -> str:
        async with autogen_client() as client:
            first = AssistantAgent("first", model_client=client, handoffs=["second"])
            second = AssistantAgent("second", model_client=client)
            done = TextMentionTermination("done:", sources=["second"])
            team = Swarm([first, second], termination_condition=done)
            result = await team.run(task=prompt)
            message = result.messages[-1]
            assert isinstance(message, TextMessage)
            return message.content

    async def retrieve(self, query: str) -> None:
        found = MemoryContent(content=f"found: {query}", mime_type=MemoryMimeType.TEXT)
        await ListMemory("archive", [found]).query(query)


class TestAutoGen(AdapterContract):
    """Each claim of the contract, on AutoGen AgentChat."""

    @pytest.fixture
    def agents(self) -> AutoGenAgents:
        return AutoGenAgents()
