import asyncio

from semantic_kernel.agents import ChatCompletionAgent
from semantic_kernel.connectors.ai.open_ai import OpenAIChatCompletion
from semantic_kernel.functions import kernel_function

QUESTION = "What is 1234567 times 7?"


class Maths:
    @kernel_function
    def multiply(self, a: int, b: int) -> int:
        """Multiply."""
        return a * b


async def main():
    agent = ChatCompletionAgent(
        service=OpenAIChatCompletion(ai_model_id="gpt-4o"), name="maths", plugins=[Maths()]
    )
    print("chat with a tool", await agent.get_response(QUESTION), sep="\t")
    parts = [str(part.content) async for part in agent.invoke_stream(QUESTION)]
    print("streamed", "".join(parts), sep="\t")


asyncio.run(main())
