import asyncio

from autogen_agentchat.agents import AssistantAgent
from autogen_agentchat.conditions import MaxMessageTermination
from autogen_agentchat.teams import RoundRobinGroupChat
from autogen_ext.models.openai import OpenAIChatCompletionClient

QUESTION = "What is 1234567 times 7?"


def multiply(a: int, b: int) -> int:
    """Multiply."""
    return a * b


async def main():
    for name, stream in (("a team of two agents, a tool", False), ("streamed", True)):
        client = OpenAIChatCompletionClient(model="gpt-4o")
        maths = AssistantAgent(
            "maths",
            model_client=client,
            tools=[multiply],
            reflect_on_tool_use=True,
            model_client_stream=stream,
        )
        writer = AssistantAgent("writer", model_client=client, model_client_stream=stream)
        team = RoundRobinGroupChat([maths, writer], termination_condition=MaxMessageTermination(3))
        result = await team.run(task=QUESTION)
        print(name, result.messages[-1].content, sep="\t")
        await client.close()


asyncio.run(main())
