import asyncio

from inspect_ai.model import ChatMessageUser, execute_tools, get_model
from inspect_ai.tool import tool


@tool
def multiply():
    async def execute(a: int, b: int):
        """Multiply.

        Args:
            a: One factor.
            b: The other.
        """
        return a * b

    return execute


async def main():
    messages = [ChatMessageUser(content="What is 1234567 times 7?")]
    async with get_model("openai/gpt-4o") as model:
        while True:
            output = await model.generate(messages, tools=[multiply()])
            messages.append(output.message)
            if not output.message.tool_calls:
                break
            messages += (await execute_tools(messages, [multiply()])).messages
    usage = output.usage
    tokens = usage.input_tokens, usage.output_tokens
    print("a loop with a tool", output.completion, *tokens, sep="\t")


asyncio.run(main())
