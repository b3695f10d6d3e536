from haystack.components.agents import Agent
from haystack.components.generators.chat import OpenAIChatGenerator
from haystack.dataclasses import ChatMessage
from haystack.tools import tool


@tool
def multiply(a: int, b: int) -> int:
    """Multiply."""
    return a * b


question = [ChatMessage.from_user("What is 1234567 times 7?")]
for name, callback in (("an agent with a tool", None), ("streamed", lambda chunk: None)):
    generator = OpenAIChatGenerator(model="gpt-4o", streaming_callback=callback)
    agent = Agent(chat_generator=generator, tools=[multiply])
    print(name, agent.run(messages=question)["messages"][-1].text, sep="\t")
