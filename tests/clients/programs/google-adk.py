import asyncio

from google.adk.agents import LlmAgent
from google.adk.agents.run_config import RunConfig, StreamingMode
from google.adk.models.lite_llm import LiteLlm
from google.adk.runners import InMemoryRunner
from google.genai import types


def multiply(a: int, b: int) -> int:
    """Multiply."""
    return a * b


async def run(agent, mode):
    runner = InMemoryRunner(agent=agent, app_name="sums")
    session = await runner.session_service.create_session(app_name="sums", user_id="someone")
    question = types.UserContent("What is 1234567 times 7?")
    said = None
    async for event in runner.run_async(
        user_id="someone",
        session_id=session.id,
        new_message=question,
        run_config=RunConfig(streaming_mode=mode),
    ):
        if event.is_final_response():
            said = event.content.parts[0].text
    return said


async def main():
    maths = LlmAgent(name="maths", model=LiteLlm("openai/gpt-4o"), tools=[multiply])
    print("chat by LiteLLM with a tool", await run(maths, StreamingMode.NONE), sep="\t")
    print("streamed", await run(maths, StreamingMode.SSE), sep="\t")
    claude = LlmAgent(name="claude", model=LiteLlm("anthropic/claude-sonnet-4-5"), tools=[multiply])
    print("messages by LiteLLM", await run(claude, StreamingMode.NONE), sep="\t")


asyncio.run(main())
