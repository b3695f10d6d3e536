from smolagents import CodeAgent, OpenAIServerModel, tool


@tool
def multiply(a: int, b: int) -> int:
    """Multiply two numbers.

    Args:
        a: One factor.
        b: The other.
    """
    return a * b


def solve(question):
    agent = CodeAgent(tools=[multiply], model=OpenAIServerModel("gpt-4o"), max_steps=5)
    return agent.run(question)
