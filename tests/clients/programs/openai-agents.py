import asyncio

from agents import Agent, OpenAIChatCompletionsModel, Runner, function_tool
from openai import AsyncOpenAI

QUESTION = "What is 1234567 times 7?"


@function_tool
def multiply(a: int, b: int) -> int:
    """Multiply."""
    return a * b


def team(model):
    maths = Agent(name="maths", instructions="You multiply.", tools=[multiply], model=model)
    return Agent(name="desk", instructions="Send sums to maths.", handoffs=[maths], model=model)


def tokens(result):
    usage = result.context_wrapper.usage
    return usage.input_tokens, usage.output_tokens


async def main():
    chat = OpenAIChatCompletionsModel("gpt-4o", AsyncOpenAI())
    for name, model in (("Responses", "gpt-4o"), ("chat", chat)):
        result = await Runner.run(team(model), QUESTION)
        print(f"{name}, a handoff and a tool", result.final_output, *tokens(result), sep="\t")
        streamed = Runner.run_streamed(team(model), QUESTION)
        async for _ in streamed.stream_events():
            pass
        print(f"{name} streamed", streamed.final_output, *tokens(streamed), sep="\t")


asyncio.run(main())
