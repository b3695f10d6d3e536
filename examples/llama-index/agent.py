from llama_index.core.agent.workflow import FunctionAgent
from llama_index.llms.openai import OpenAI


def multiply(a: int, b: int) -> int:
    """Multiply two numbers."""
    return a * b


async def solve(question):
    agent = FunctionAgent(tools=[multiply], llm=OpenAI(model="gpt-4o"))
    return str(await agent.run(question))
