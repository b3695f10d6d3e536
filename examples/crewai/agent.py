from crewai import Agent, Crew, Task
from crewai.tools import tool


@tool("multiply")
def multiply(a: int, b: int) -> int:
    """Multiply two numbers."""
    return a * b


def solve(question):
    mathematician = Agent(
        role="Mathematician",
        goal="Give the exact product.",
        backstory="You never guess a product: you multiply.",
        tools=[multiply],
        llm="openai/gpt-4o",
    )
    task = Task(description=question, expected_output="The product.", agent=mathematician)
    return Crew(agents=[mathematician], tasks=[task]).kickoff().raw
