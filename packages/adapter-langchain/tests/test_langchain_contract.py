"""LangChain and LangGraph pass the adapter contract."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from functools import cached_property
from typing import Any

import pytest_asyncio
from langchain.agents import create_agent
from langchain_core.callbacks import CallbackManagerForRetrieverRun
from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever
from langchain_core.tools import StructuredTool, tool
from langchain_openai import ChatOpenAI
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.types import Command
from openai import DefaultAsyncHttpxClient, DefaultHttpxClient

from lightningrl_langchain import LangChainAdapter
from lightningrl_testkit.adapter import AdapterContract
from lightningrl_testkit.examples import ExampleAgents
from lightningrl_testkit.lab import LOOKUP_DESCRIPTION, MODEL, lookup


def lookup_in_thread(key: str) -> str:
    """The tool, for those who call it without an event loop."""
    return asyncio.run(lookup(key))


LOOKUP = StructuredTool.from_function(
    lookup_in_thread, coroutine=lookup, name="lookup", description=LOOKUP_DESCRIPTION
)


class Archive(BaseRetriever):
    """Finds what it is asked for."""

    def _get_relevant_documents(
        self, query: str, *, run_manager: CallbackManagerForRetrieverRun
    ) -> list[Document]:
        return [Document(page_content=f"found: {query}", metadata={"source": "shelf"})]


class LangChainAgents(ExampleAgents):
    """One set of agents serves all rollouts of a test: they keep nothing."""

    packages = ("langchain", "langchain_core", "langchain_openai", "langgraph")

    def __init__(self, http: DefaultHttpxClient, http_async: DefaultAsyncHttpxClient) -> None:
        self._http = http
        self._http_async = http_async

    @cached_property
    def model(self) -> ChatOpenAI:
        # LangChain shares its own HTTP clients between the event loops of a process, and each test has
        # a loop of its own.
        return ChatOpenAI(
            model=MODEL,
            max_retries=0,
            timeout=60.0,
            http_client=self._http,
            http_async_client=self._http_async,
        )

    @cached_property
    def asker(self) -> Any:
        return create_agent(self.model, name="asker")

    @cached_property
    def worker(self) -> Any:
        return create_agent(self.model, [LOOKUP], name="worker")

    @cached_property
    def inner(self) -> Any:
        return create_agent(self.model, [LOOKUP], name="inner")

    @cached_property
    def outer(self) -> Any:
        @tool
        async def ask_inner(prompt: str) -> str:
            """Ask the inner agent."""
            return await answer(self.inner, prompt)

        return create_agent(self.model, [ask_inner], name="outer")

    @cached_property
    def team(self) -> Any:
        @tool
        def transfer_to_second(key: str) -> Command[str]:
            """Let the second agent go on."""
            return Command(goto="second", graph=Command.PARENT)

        graph = StateGraph(MessagesState)
        graph.add_node("first", create_agent(self.model, [transfer_to_second], name="first"))
        graph.add_node("second", create_agent(self.model, name="second"))
        graph.add_edge(START, "first")
        return graph.compile()

    def make_adapter(self) -> LangChainAdapter:
        return LangChainAdapter()

    async def ask(self, prompt: str, *, stream: bool = False) -> str:
        return await answer(self.asker, prompt, stream=stream)

    async def ask_with_tool(self, prompt: str, *, stream: bool = False) -> str:
        return await answer(self.worker, prompt, stream=stream)

    def ask_in_thread(self, prompt: str) -> str:
        return str(self.worker.invoke({"messages": prompt})["messages"][-1].text)

    async def ask_through_sub_agent(self, prompt: str) -> str:
        return await answer(self.outer, prompt)

    async def hand_off(self, prompt: str) -> str:
        return await answer(self.team, prompt)

    async def retrieve(self, query: str) -> None:
        await Archive(name="archive").ainvoke(query)


async def answer(agent: Any, prompt: str, *, stream: bool = False) -> str:
    """The text of the agent's last message."""
    given = {"messages": prompt}
    if not stream:
        return str((await agent.ainvoke(given))["messages"][-1].text)
    last = ""
    async for kind, part in agent.astream(given, stream_mode=["messages", "values"]):
        if kind == "values":
            last = str(part["messages"][-1].text)
    return last


class TestLangChain(AdapterContract):
    """Each claim of the contract, on LangChain 1.x and LangGraph 1.x."""

    @pytest_asyncio.fixture
    async def agents(self) -> AsyncIterator[LangChainAgents]:
        with DefaultHttpxClient() as http:
            async with DefaultAsyncHttpxClient() as http_async:
                yield LangChainAgents(http, http_async)
