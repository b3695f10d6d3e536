from pydantic_ai import Agent

agent = Agent("openai-chat:gpt-4o", defer_model_check=True, instructions="Use your tool.")


@agent.tool_plain
def multiply(a: int, b: int) -> int:
    """Multiply two numbers."""
    return a * b


async def solve(question):
    return (await agent.run(question)).output
