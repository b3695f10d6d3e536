"""The agent: an ordinary LangGraph graph that writes a query, runs it, checks it, and rewrites it.

    writer -> execute -> checker -> (end | rewriter -> execute -> ...)

A query that can't be run goes to the rewriter at once: its error is the verdict. Three nodes call a model, each with a
prompt of its own; the nodes' names are the agents' names.

Invariant: nothing here knows about training. The model is reached through the openai client's own environment variables
(`OPENAI_BASE_URL`, `OPENAI_API_KEY`), so the file runs in production as it is. `SQL_MODEL` names the model.
"""

from __future__ import annotations

import asyncio
import functools
import os
from collections.abc import Mapping
from typing import Any, TypedDict

from langchain_openai import ChatOpenAI
from langgraph.graph import END, START, StateGraph

from lightningrl_bench_sql.database import QueryError, cut, run, show
from lightningrl_bench_sql.prompts import (
    Message,
    approves,
    query_in,
    to_checker,
    to_rewriter,
    to_writer,
)

DEFAULT_MODEL = "gpt-4o-mini"
MAX_QUERIES = 3
"""Queries that the agent tries; the last one is its answer, unchecked."""


class State(TypedDict):
    """What the nodes share; each returns what it changes."""

    schema: str
    question: str
    database: str
    """Path of the file that queries run on."""
    query: str
    """The newest one."""
    queries: int
    """How many there were."""
    result: str
    """What the newest query gave, rows or an error."""
    failed: bool
    """Whether that is an error."""
    verdict: str | None
    """What the checker said of it. `None`: it was not asked."""


async def solve(task: Mapping[str, Any]) -> str:
    """Return the agent's query for `task["question"]` about the file `task["database"]`."""
    given = {name: task[name] for name in ("schema", "question", "database")}
    state = await graph().ainvoke(given)
    return state["query"]


@functools.cache
def graph() -> Any:
    """Return the compiled graph; it keeps nothing, so all tasks share it."""
    builder = StateGraph(State)
    builder.add_node("writer", _write)
    builder.add_node("execute", _execute)
    builder.add_node("checker", _check)
    builder.add_node("rewriter", _rewrite)
    builder.add_edge(START, "writer")
    builder.add_edge("writer", "execute")
    builder.add_conditional_edges("execute", _after_execution, ["checker", "rewriter", END])
    builder.add_conditional_edges("checker", _after_check, ["rewriter", END])
    builder.add_edge("rewriter", "execute")
    return builder.compile()


async def _write(state: State) -> dict[str, Any]:
    answer = await _ask(to_writer(state["schema"], state["question"]))
    return {"query": query_in(answer), "queries": 1}


async def _execute(state: State) -> dict[str, Any]:
    try:
        rows = await asyncio.to_thread(run, state["database"], state["query"])
    except QueryError as error:
        return {"result": cut(f"error: {error}"), "failed": True, "verdict": None}
    return {"result": show(rows), "failed": False, "verdict": None}


async def _check(state: State) -> dict[str, Any]:
    prompt = to_checker(state["schema"], state["question"], state["query"], state["result"])
    return {"verdict": cut((await _ask(prompt)).strip())}


async def _rewrite(state: State) -> dict[str, Any]:
    prompt = to_rewriter(
        state["schema"], state["question"], state["query"], state["result"], state["verdict"]
    )
    return {"query": query_in(await _ask(prompt)), "queries": state["queries"] + 1}


def _after_execution(state: State) -> str:
    if state["queries"] == MAX_QUERIES:
        return END
    return "rewriter" if state["failed"] else "checker"


def _after_check(state: State) -> str:
    return END if approves(state["verdict"] or "") else "rewriter"


async def _ask(prompt: list[Message]) -> str:
    return (await _model().ainvoke(prompt)).text


@functools.cache
def _model() -> ChatOpenAI:
    """Return the model's client; the environment is read when it is first needed."""
    return ChatOpenAI(model=os.environ.get("SQL_MODEL", DEFAULT_MODEL))
