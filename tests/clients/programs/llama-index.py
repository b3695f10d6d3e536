import asyncio

from llama_index.core.agent.workflow import FunctionAgent
from llama_index.llms.openai import OpenAI, OpenAIResponses
from llama_index.llms.openai_like import OpenAILike

QUESTION = "What is 1234567 times 7?"


def multiply(a: int, b: int) -> int:
    """Multiply."""
    return a * b


MODELS = {
    "chat, `FunctionAgent`": OpenAI(model="gpt-4o"),
    "`OpenAILike`": OpenAILike(model="any", is_chat_model=True, is_function_calling_model=True),
    "Responses": OpenAIResponses(model="gpt-4o"),
}


async def main():
    for name, model in MODELS.items():
        for streaming in (False, True):
            agent = FunctionAgent(tools=[multiply], llm=model, streaming=streaming)
            said = await agent.run(QUESTION)
            print(f"{name}{' streamed' * streaming}", said, sep="\t")


asyncio.run(main())
