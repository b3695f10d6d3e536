import asyncio

from ag2 import Agent, tool
from ag2.config import OpenAIConfig, OpenAIResponsesConfig

QUESTION = "What is 1234567 times 7?"


@tool
def multiply(a: int, b: int) -> int:
    """Multiply."""
    return a * b


async def main():
    configs = {
        "chat": OpenAIConfig(model="gpt-4o"),
        "chat streamed": OpenAIConfig(model="gpt-4o", streaming=True),
        "Responses": OpenAIResponsesConfig(model="gpt-4o"),
    }
    for name, config in configs.items():
        agent = Agent("maths", "You multiply.", config=config, tools=[multiply])
        reply = await agent.ask(QUESTION)
        print(f"{name}, an agent with a tool", await reply.content(), sep="\t")


asyncio.run(main())
