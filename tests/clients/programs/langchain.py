from langchain.agents import create_agent
from langchain_anthropic import ChatAnthropic
from langchain_openai import ChatOpenAI
from pydantic import BaseModel

QUESTION = {"messages": [{"role": "user", "content": "What is 1234567 times 7?"}]}


class Product(BaseModel):
    product: int


def multiply(a: int, b: int) -> int:
    """Multiply."""
    return a * b


MODELS = {
    "chat": ChatOpenAI(model="gpt-4o"),
    "Responses": ChatOpenAI(model="gpt-4o", use_responses_api=True),
    "messages": ChatAnthropic(model="claude-sonnet-4-5"),
}

for name, model in MODELS.items():
    agent = create_agent(model, [multiply], system_prompt="You multiply.")
    said = agent.invoke(QUESTION)["messages"][-1]
    usage = said.usage_metadata
    tokens = usage["input_tokens"], usage["output_tokens"]
    print(f"{name}, `create_agent` with a tool", said.text, *tokens, sep="\t")
    parts = agent.stream(QUESTION, stream_mode="messages")
    text = "".join(part.text for part, _ in parts if part.type == "AIMessageChunk")
    print(f"{name} streamed", text, sep="\t")

agent = create_agent(MODELS["chat"], [multiply], response_format=Product)
print("`response_format`", agent.invoke(QUESTION)["structured_response"], sep="\t")
