"""The real AutoGen agent against a real HTTP server that plays the model from a script."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from aiohttp import web

from lightningrl_bench_math.agent import (
    DEFAULT_MODEL,
    MAX_TOOL_ITERATIONS,
    solve,
    solve_without_tool,
)
from lightningrl_bench_math.dialogues import answers, dialogues

TASK = {"question": "tom has 12 bags of 7 pens and gets 3 more. how many now?"}


@dataclass
class ScriptedModel:
    """Answers a conversation by its number of tool results; the last entry repeats."""

    script: Sequence[str] = ()
    """Expressions to call the calculator with; an entry that starts with "=" is a text answer."""
    requests: list[dict[str, Any]] = field(default_factory=list)

    async def complete(self, request: web.Request) -> web.Response:
        body = await request.json()
        self.requests.append(body)
        done = sum(message["role"] == "tool" for message in body["messages"])
        entry = self.script[min(done, len(self.script) - 1)]
        message: dict[str, Any] = {"role": "assistant", "content": entry[1:]}
        if not entry.startswith("="):
            arguments = json.dumps({"expression": entry})
            call = {"name": "calculator", "arguments": arguments}
            calls = [{"id": f"call-{done}", "type": "function", "function": call}]
            message = {"role": "assistant", "content": None, "tool_calls": calls}
        finish = "tool_calls" if "tool_calls" in message else "stop"
        return web.json_response(
            {
                "id": f"answer-{len(self.requests)}",
                "object": "chat.completion",
                "created": 0,
                "model": body["model"],
                "choices": [{"index": 0, "message": message, "finish_reason": finish}],
                "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
            }
        )


@pytest.fixture
async def model(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[ScriptedModel]:
    scripted = ScriptedModel()
    app = web.Application()
    app.router.add_post("/v1/chat/completions", scripted.complete)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    monkeypatch.setenv("OPENAI_BASE_URL", f"http://127.0.0.1:{port}/v1")
    monkeypatch.setenv("OPENAI_API_KEY", "test-key")
    monkeypatch.delenv("MATH_MODEL", raising=False)
    yield scripted
    await runner.cleanup()


def _tool_results(request: dict[str, Any]) -> list[str]:
    return [m["content"] for m in request["messages"] if m["role"] == "tool"]


async def test_the_agent_calls_the_calculator_in_turns_and_returns_the_answer(
    model: ScriptedModel,
) -> None:
    model.script = ["12*7", "84+3", "=87"]
    assert await solve(TASK) == "87"
    assert [_tool_results(request) for request in model.requests] == [[], ["84"], ["84", "87"]]


async def test_the_request_carries_the_question_and_the_one_tool(model: ScriptedModel) -> None:
    model.script = ["=87"]
    await solve(TASK)
    (request,) = model.requests
    assert request["model"] == DEFAULT_MODEL
    assert [message["role"] for message in request["messages"]] == ["system", "user"]
    assert request["messages"][1]["content"] == TASK["question"]
    (tool,) = request["tools"]
    assert tool["function"]["name"] == "calculator"
    assert tool["function"]["parameters"]["properties"].keys() == {"expression"}


async def test_demonstrations_are_what_the_agent_sends(model: ScriptedModel) -> None:
    shown = next(one for one in dialogues(50, 0, slips=1.0) if "error" in str(one["messages"]))
    *calls, answer = [one for one in shown["messages"] if one["role"] == "assistant"]
    functions = [call["tool_calls"][0]["function"] for call in calls]
    model.script = [
        *(json.loads(function["arguments"])["expression"] for function in functions),
        f"={answer['content']}",
    ]
    assert await solve({"question": shown["messages"][1]["content"]}) == answer["content"]
    # As text: a chat template keeps the order of keys.
    assert json.dumps(model.requests[-1]["tools"]) == json.dumps(shown["tools"])
    assert _told(model.requests[-1]["messages"]) == _told(shown["messages"][:-1])


def _told(messages: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    """What a chat template reads of messages: ids and the names of users are not of it."""
    return [
        (
            one["role"],
            one.get("content"),
            [call["function"] for call in one.get("tool_calls") or ()],
        )
        for one in messages
    ]


async def test_the_control_has_no_tool(model: ScriptedModel) -> None:
    model.script = ["=87"]
    assert await solve_without_tool(TASK) == "87"
    assert "tools" not in model.requests[0]
    [system, *_] = next(answers(1, 0))["messages"]
    assert model.requests[0]["messages"][0]["content"] == system["content"]


async def test_a_tool_error_reaches_the_model_as_text(model: ScriptedModel) -> None:
    model.script = ["12*", "=?"]
    assert await solve(TASK) == "?"
    assert _tool_results(model.requests[1]) == ["error"]


async def test_an_agent_that_never_answers_returns_nothing(model: ScriptedModel) -> None:
    model.script = ["1+1"]
    assert await solve(TASK) == ""
    assert len(model.requests) == MAX_TOOL_ITERATIONS


async def test_tasks_at_the_same_time_do_not_see_each_other(model: ScriptedModel) -> None:
    model.script = ["6*7", "=42"]
    questions = [f"question {number}" for number in range(8)]
    answers = await asyncio.gather(*[solve({"question": question}) for question in questions])
    assert answers == ["42"] * 8
    asked = [[m["content"] for m in r["messages"] if m["role"] == "user"] for r in model.requests]
    assert sorted(asked) == sorted([[question] for question in questions] * 2)


async def test_the_environment_names_the_model(
    model: ScriptedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MATH_MODEL", "my-model")
    model.script = ["=1"]
    await solve(TASK)
    assert model.requests[0]["model"] == "my-model"


def test_the_agent_imports_nothing_of_the_trainer_or_the_core() -> None:
    code = (
        "import sys; import lightningrl_bench_math.agent, lightningrl_bench_math.reward;"
        "sys.exit(any(name.split('.')[0] in ('lightningrl', 'lightningrl_verl', 'torch')"
        " for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
