from agno.agent import Agent
from agno.models.anthropic import Claude
from agno.models.openai import OpenAIChat, OpenAIResponses

QUESTION = "What is 1234567 times 7?"


def multiply(a: int, b: int) -> int:
    """Multiply."""
    return a * b


MODELS = {
    "chat": OpenAIChat(id="gpt-4o"),
    "Responses": OpenAIResponses(id="gpt-4o"),
    "messages": Claude(id="claude-sonnet-4-5"),
}
for name, model in MODELS.items():
    agent = Agent(model=model, tools=[multiply], telemetry=False)
    result = agent.run(QUESTION)
    tokens = result.metrics.input_tokens, result.metrics.output_tokens
    print(f"{name} with a tool", result.content, *tokens, sep="\t")
    text = "".join(part.content or "" for part in agent.run(QUESTION, stream=True))
    print(f"{name} streamed", text, sep="\t")
