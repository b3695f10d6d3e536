from smolagents import LiteLLMModel, OpenAIServerModel, ToolCallingAgent, tool

QUESTION = "What is 1234567 times 7?"


@tool
def multiply(a: int, b: int) -> int:
    """Multiply.

    Args:
        a: One factor.
        b: The other.
    """
    return a * b


MODELS = {
    "`ToolCallingAgent`": OpenAIServerModel("gpt-4o"),
    "`ToolCallingAgent` by LiteLLM": LiteLLMModel("openai/gpt-4o"),
}
for name, model in MODELS.items():
    agent = ToolCallingAgent([multiply], model, verbosity_level=0)
    print(name, agent.run(QUESTION), sep="\t")
