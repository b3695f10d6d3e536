"""AutoGen passes the adapter contract."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from autogen_agentchat.agents import AssistantAgent
from autogen_agentchat.messages import TextMessage, ToolCallSummaryMessage
from autogen_agentchat.tools import AgentTool
from autogen_core.models import ModelInfo
from autogen_core.tools import FunctionTool
from autogen_ext.models.openai import OpenAIChatCompletionClient

from lightningrl_autogen import AutoGenAdapter
from lightningrl_testkit.adapter import LOOKUP_DESCRIPTION, MODEL, AdapterContract, lookup


@asynccontextmanager
async def model_client() -> AsyncGenerator[OpenAIChatCompletionClient]:
    """A client as users build one: address and key come from the environment."""
    info = ModelInfo(
        vision=False,
        function_calling=True,
        json_output=False,
        family="unknown",
        structured_output=False,
    )
    client = OpenAIChatCompletionClient(model=MODEL, model_info=info, max_retries=0)
    try:
        yield client
    finally:
        await client.close()


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


class TestAutoGen(AdapterContract):
    """Each claim of the contract, on AutoGen AgentChat."""

    def make_adapter(self) -> AutoGenAdapter:
        return AutoGenAdapter()

    async def ask(self, prompt: str, *, stream: bool = False) -> str:
        async with model_client() as client:
            agent = AssistantAgent("asker", model_client=client, model_client_stream=stream)
            return await answer(agent, prompt)

    async def ask_with_tool(self, prompt: str, *, stream: bool = False) -> str:
        async with model_client() as client:
            return await answer(worker("worker", client, stream=stream), prompt)

    async def ask_through_sub_agent(self, prompt: str) -> str:
        async with model_client() as client:
            inner = AgentTool(worker("inner", client), return_value_as_last_message=True)
            outer = AssistantAgent(
                "outer", model_client=client, tools=[inner], max_tool_iterations=3
            )
            return await answer(outer, prompt)
