import llm


def multiply(a: int, b: int) -> int:
    """Multiply."""
    return a * b


model = llm.get_model("gpt-4o")
chain = model.chain("What is 1234567 times 7?", tools=[multiply])
print("a chain with a tool, streamed", chain.text(), sep="\t")
