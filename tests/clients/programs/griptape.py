from griptape.artifacts import TextArtifact
from griptape.drivers.prompt.openai import OpenAiChatPromptDriver
from griptape.structures import Agent
from griptape.tools import BaseTool
from griptape.utils.decorators import activity
from schema import Schema


class Maths(BaseTool):
    @activity(config={"description": "Multiply.", "schema": Schema({"a": int, "b": int})})
    def multiply(self, values: dict) -> TextArtifact:
        return TextArtifact(values["a"] * values["b"])


for name, stream in (("an agent with a tool", False), ("streamed", True)):
    driver = OpenAiChatPromptDriver(model="gpt-4o", stream=stream)
    agent = Agent(prompt_driver=driver, tools=[Maths()])
    print(name, agent.run("What is 1234567 times 7?").output.value, sep="\t")
