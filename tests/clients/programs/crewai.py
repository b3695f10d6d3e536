from crewai import LLM, Agent, Crew, Task
from crewai.tools import tool


@tool("multiply")
def multiply(a: int, b: int) -> int:
    """Multiply."""
    return a * b


def crew(stream):
    agent = Agent(
        role="Mathematician",
        goal="Multiply.",
        backstory="You like numbers.",
        tools=[multiply],
        llm=LLM(model="openai/gpt-4o", stream=stream),
    )
    task = Task(description="What is 1234567 times 7?", expected_output="The product.", agent=agent)
    return Crew(agents=[agent], tasks=[task])


said = crew(False).kickoff()
usage = said.token_usage
print("a crew with a tool", said.raw, usage.prompt_tokens, usage.completion_tokens, sep="\t")
print("streamed", crew(True).kickoff().raw, sep="\t")
