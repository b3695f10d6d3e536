from langchain_openai import ChatOpenAI
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode, tools_condition

QUESTION = {"messages": [{"role": "user", "content": "What is 1234567 times 7?"}]}


def multiply(a: int, b: int) -> int:
    """Multiply."""
    return a * b


model = ChatOpenAI(model="gpt-4o").bind_tools([multiply])
graph = StateGraph(MessagesState)
graph.add_node("think", lambda state: {"messages": [model.invoke(state["messages"])]})
graph.add_node("tools", ToolNode([multiply]))
graph.add_edge(START, "think")
graph.add_conditional_edges("think", tools_condition)
graph.add_edge("tools", "think")
agent = graph.compile()

said = agent.invoke(QUESTION)["messages"][-1]
usage = said.usage_metadata
tokens = usage["input_tokens"], usage["output_tokens"]
print("a graph with a tool node", said.text, *tokens, sep="\t")
parts = agent.stream(QUESTION, stream_mode="messages")
text = "".join(part.text for part, _ in parts if part.type == "AIMessageChunk")
print("its tokens streamed", text, sep="\t")
