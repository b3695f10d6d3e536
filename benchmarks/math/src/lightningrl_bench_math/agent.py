"""The agent: an ordinary AutoGen assistant that solves word problems with a calculator.

Invariant: nothing here knows about training. The model is reached through the openai client's own
environment variables (`OPENAI_BASE_URL`, `OPENAI_API_KEY`), so the file runs in production as it
is. `MATH_MODEL` names the model.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from typing import Any
from weakref import WeakKeyDictionary

from autogen_agentchat.agents import AssistantAgent
from autogen_agentchat.messages import TextMessage
from autogen_core.models import ModelFamily, ModelInfo
from autogen_core.tools import FunctionTool
from autogen_ext.models.openai import OpenAIChatCompletionClient

from lightningrl_bench_math.calculator import evaluate
from lightningrl_bench_math.prompts import INSTRUCTIONS, INSTRUCTIONS_WITHOUT_TOOL

DEFAULT_MODEL = "gpt-4o-mini-2024-07-18"
"""A dated name: AutoGen warns when the server's name differs from the one asked for."""

MAX_TOOL_ITERATIONS = 10
"""Answers of the model before the agent gives up; generated problems need eight calls at most, and an answer."""

# Explicit, because AutoGen knows the abilities of OpenAI's own models only.
_MODEL_INFO = ModelInfo(
    vision=False,
    function_calling=True,
    json_output=False,
    family=ModelFamily.UNKNOWN,
    structured_output=False,
)

# An HTTP client belongs to one event loop, and building one takes about 15 ms.
_clients: WeakKeyDictionary[asyncio.AbstractEventLoop, OpenAIChatCompletionClient] = (
    WeakKeyDictionary()
)


async def calculator(expression: str) -> str:
    """Evaluate arithmetic such as "12*7" or "(3+4)%5" and return the number.

    Raises:
        CalculatorError: for anything else; AutoGen shows its text, "error", to the model.
    """
    return evaluate(expression)


_calculator_tool = FunctionTool(calculator, description="Evaluate an arithmetic expression.")


async def solve(task: Mapping[str, Any]) -> str:
    """Return the agent's final answer to `task["question"]`.

    The answer is "" if the agent used up its tool rounds without answering.
    """
    assistant = AssistantAgent(
        "solver",
        model_client=_client(),
        tools=[_calculator_tool],
        system_message=INSTRUCTIONS,
        max_tool_iterations=MAX_TOOL_ITERATIONS,
        reflect_on_tool_use=False,
    )
    return await _answer(assistant, task)


async def solve_without_tool(task: Mapping[str, Any]) -> str:
    """Return the answer of an agent that has no calculator: the control that shows what the tool is worth."""
    assistant = AssistantAgent(
        "solver", model_client=_client(), system_message=INSTRUCTIONS_WITHOUT_TOOL
    )
    return await _answer(assistant, task)


async def _answer(assistant: AssistantAgent, task: Mapping[str, Any]) -> str:
    result = await assistant.run(task=str(task["question"]))
    last = result.messages[-1]
    return last.content if isinstance(last, TextMessage) else ""


def _client() -> OpenAIChatCompletionClient:
    """Return this event loop's model client; the environment is read when it is first built."""
    loop = asyncio.get_running_loop()
    client = _clients.get(loop)
    if client is None:
        model = os.environ.get("MATH_MODEL", DEFAULT_MODEL)
        client = OpenAIChatCompletionClient(model=model, model_info=_MODEL_INFO)
        _clients[loop] = client
    return client
