"""A restaurant's support agent: a LangGraph agent that reads the booking book and books a table.

It knows nothing of training. Whoever calls it says which book its tools work on.
"""

import functools
from typing import Any, Protocol

from langchain.agents import create_agent
from langchain.tools import ToolRuntime, tool
from langchain_openai import ChatOpenAI

PROMPT = "You book tables. First look up the free times. Book only a time that is free and that the guest chose."


class Book(Protocol):
    """Where tables are booked."""

    def free(self, day: str, guests: int) -> list[str]:
        """Return the times at which a table is free."""
        ...

    def book(self, day: str, time: str, guests: int, name: str) -> str:
        """Book a table, and return what became of it."""
        ...


@tool
def free_times(day: str, guests: int, runtime: ToolRuntime[Any, Any]) -> str:
    """Look up free times."""
    return ", ".join(runtime.context.free(day, guests)) or "none"


@tool
def book_table(day: str, time: str, guests: int, name: str, runtime: ToolRuntime[Any, Any]) -> str:
    """Book a table."""
    return runtime.context.book(day, time, guests, name)


@functools.cache
def agent() -> Any:
    """Return the graph; its client reads `OPENAI_BASE_URL` and `OPENAI_API_KEY`."""
    tools = [free_times, book_table]
    return create_agent(
        ChatOpenAI(model="gpt-4o-mini"), tools, system_prompt=PROMPT, name="support"
    )


async def answer(messages: list[Any], book: Book) -> list[Any]:
    """Return the conversation with what the agent did and said."""
    state = await agent().ainvoke({"messages": messages}, {"recursion_limit": 12}, context=book)
    return state["messages"]
