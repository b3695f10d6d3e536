import asyncio

from agent_framework import Agent
from agent_framework.openai import OpenAIChatClient, OpenAIChatCompletionClient

QUESTION = "What is 1234567 times 7?"


def multiply(a: int, b: int) -> int:
    """Multiply."""
    return a * b


async def main():
    clients = {
        "chat": OpenAIChatCompletionClient(model="gpt-4o"),
        "Responses": OpenAIChatClient(model="gpt-4o"),
    }
    for name, client in clients.items():
        agent = Agent(client, instructions="You multiply.", tools=[multiply])
        print(f"{name} with a tool", await agent.run(QUESTION), sep="\t")
        stream = agent.run(QUESTION, stream=True)
        async for _ in stream:
            pass
        print(f"{name} streamed", await stream.get_final_response(), sep="\t")


asyncio.run(main())
