from smolagents import CodeAgent, OpenAIServerModel, tool

QUESTION = "What is 1234567 times 7?"


@tool
def multiply(a: int, b: int) -> int:
    """Multiply.

    Args:
        a: One factor.
        b: The other.
    """
    return a * b


model = OpenAIServerModel("gpt-4o")
for name, stream in (("`CodeAgent`", False), ("`CodeAgent` streamed", True)):
    agent = CodeAgent([multiply], model, stream_outputs=stream, verbosity_level=0)
    result = agent.run(QUESTION, return_full_result=True)
    usage = result.token_usage
    print(f"\n{name}", result.output, usage.input_tokens, usage.output_tokens, sep="\t")
