from deepagents import create_deep_agent
from langchain_openai import ChatOpenAI


def multiply(a: int, b: int) -> int:
    """Multiply."""
    return a * b


agent = create_deep_agent(model=ChatOpenAI(model="gpt-4o"), tools=[multiply])
question = {"messages": [{"role": "user", "content": "What is 1234567 times 7?"}]}
said = agent.invoke(question)["messages"][-1]
usage = said.usage_metadata
tokens = usage["input_tokens"], usage["output_tokens"]
print("a tool beside its own", said.text, *tokens, sep="\t")
