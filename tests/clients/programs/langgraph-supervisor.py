from langchain.agents import create_agent
from langchain_openai import ChatOpenAI
from langgraph_supervisor import create_supervisor

QUESTION = {"messages": [{"role": "user", "content": "What is 1234567 times 7?"}]}
model = ChatOpenAI(model="gpt-4o")


def multiply(a: int, b: int) -> int:
    """Multiply."""
    return a * b


maths = create_agent(model, [multiply], name="maths")
writer = create_agent(model, [], name="writer")
team = create_supervisor([maths, writer], model=model, prompt="Send sums to maths.").compile()
print("a supervisor of two agents", team.invoke(QUESTION)["messages"][-1].text, sep="\t")
