import dspy


def multiply(a: int, b: int) -> int:
    """Multiply."""
    return a * b


dspy.configure(lm=dspy.LM("openai/gpt-4o", cache=False))
agent = dspy.ReAct("question -> answer", tools=[multiply])
print("`ReAct` with a tool", agent(question="What is 1234567 times 7?").answer, sep="\t")
short = dspy.ChainOfThought("question -> answer: str")
with dspy.context(adapter=dspy.JSONAdapter()):
    print("`JSONAdapter`", short(question="What is 8641969 times 1?").answer, sep="\t")
