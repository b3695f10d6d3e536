"""The agent: an ordinary agent of the OpenAI Agents SDK that answers questions by searching a corpus.

Invariant: nothing here knows about training. The model is reached through the openai client's own environment variables
(`OPENAI_BASE_URL`, `OPENAI_API_KEY`) by chat completions, so the file runs in production as it is. `RAG_MODEL` names the
model.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from typing import Any
from weakref import WeakKeyDictionary

from agents import (
    Agent,
    MaxTurnsExceeded,
    ModelBehaviorError,
    OpenAIProvider,
    RunConfig,
    RunContextWrapper,
    Runner,
    function_tool,
)
from openai import AsyncOpenAI

from lightningrl_bench_rag.prompts import INSTRUCTIONS
from lightningrl_bench_rag.search import Index, index_of

DEFAULT_MODEL = "gpt-4o-mini"

MAX_TURNS = 7
"""Answers of the model before the agent gives up; generated questions need four searches at most, and an answer."""

# Its HTTP client belongs to one event loop.
_providers: WeakKeyDictionary[asyncio.AbstractEventLoop, OpenAIProvider] = WeakKeyDictionary()


def _refused(context: RunContextWrapper[Any], error: Exception) -> str:  # noqa: ARG001
    """What the model is told of a call that can't be made."""
    return "error"


@function_tool(failure_error_function=_refused)
async def search(context: RunContextWrapper[Index], query: str) -> str:
    """Return the three best passages."""
    return context.context.answer(query)


async def solve(task: Mapping[str, Any]) -> str:
    """Return the agent's answer to `task["question"]`, searched for in `task["corpus"]` (see `search.index_of`).

    The answer is "" if the agent used up its turns, or called a tool that there is not.
    """
    agent = Agent[Index](
        name="researcher",
        instructions=INSTRUCTIONS,
        model=os.environ.get("RAG_MODEL", DEFAULT_MODEL),
        tools=[search],
    )
    try:
        result = await Runner.run(
            agent,
            str(task["question"]),
            context=index_of(str(task["corpus"])),
            max_turns=MAX_TURNS,
            run_config=RunConfig(model_provider=_provider(), tracing_disabled=True),
        )
    except (MaxTurnsExceeded, ModelBehaviorError):
        return ""
    return str(result.final_output)


def _provider() -> OpenAIProvider:
    """Return this event loop's models; the environment is read when it is first called."""
    loop = asyncio.get_running_loop()
    if loop not in _providers:
        _providers[loop] = OpenAIProvider(openai_client=AsyncOpenAI(), use_responses=False)
    return _providers[loop]
