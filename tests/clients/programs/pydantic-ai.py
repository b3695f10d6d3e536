import asyncio

from pydantic import BaseModel
from pydantic_ai import Agent

QUESTION = "What is 1234567 times 7?"


class Product(BaseModel):
    product: int


def multiply(a: int, b: int) -> int:
    """Multiply."""
    return a * b


def tokens(result):
    usage = result.usage() if callable(result.usage) else result.usage
    return usage.input_tokens, usage.output_tokens


async def main():
    models = {
        "chat": "openai-chat:gpt-4o",
        "Responses": "openai-responses:gpt-4o",
        "messages": "anthropic:claude-sonnet-4-5",
    }
    for name, model in models.items():
        agent = Agent(model, tools=[multiply], instructions="You multiply.")
        result = await agent.run(QUESTION)
        print(f"{name} with a tool", result.output, *tokens(result), sep="\t")
        async with agent.run_stream(QUESTION) as streamed:
            text = await streamed.get_output()
            print(f"{name} streamed", text, *tokens(streamed), sep="\t")
    agent = Agent(models["chat"], tools=[multiply], output_type=Product)
    result = await agent.run(QUESTION)
    print("`output_type`", result.output, *tokens(result), sep="\t")


asyncio.run(main())
