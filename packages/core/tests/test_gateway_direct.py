"""A model in use: the real clients of OpenAI and Anthropic are answered by one engine, without a store."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import openai
import pytest
from click.testing import CliRunner

from lightningrl.cli import commands
from lightningrl.deployment import SERVING, Serving, write_serving
from lightningrl.gateway.direct import DirectGateway
from lightningrl.keys import OPEN
from lightningrl.machine.clock import SystemClock
from lightningrl.schema import Endpoint, RewriteRules
from lightningrl.server.serve import listen, run, url_of
from lightningrl_testkit.model_server import Answer, ModelServer, ToolCall, in_turn

NO_RULES = RewriteRules()
HI: list[Any] = [{"role": "user", "content": "Hi"}]
LOOK = Answer("", tool_calls=(ToolCall("call-1", "weather", '{"city": "Bern"}'),))
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}}


@asynccontextmanager
async def serving(engine: ModelServer, rules: RewriteRules = NO_RULES) -> AsyncGenerator[str]:
    """The URL of a gateway before an engine."""
    listener = listen("127.0.0.1", 0, OPEN)
    stop, answers = asyncio.Event(), asyncio.Event()
    app = DirectGateway(Endpoint(engine.url, None), "small", clock=SystemClock(), rules=rules)
    task = asyncio.create_task(run(app, listener, stop, answers.set))
    await answers.wait()
    try:
        yield url_of(listener)
    finally:
        stop.set()
        await task
        listener.close()


async def test_openais_client_is_answered_whatever_model_it_asks_for() -> None:
    with ModelServer(in_turn("Yo")) as engine:
        async with (
            serving(engine) as url,
            openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="-") as client,
        ):
            reply = await client.chat.completions.create(
                model="gpt-4o-mini", messages=HI, temperature=0.3
            )
            names = [one.id async for one in await client.models.list()]
        asked = engine.arrivals[0].body
    assert (reply.choices[0].message.content, reply.choices[0].finish_reason) == ("Yo", "stop")
    assert (asked["model"], asked["temperature"]) == ("small", 0.3)
    assert names == ["small"]
    assert "token_ids" not in reply.choices[0].to_dict()


@pytest.mark.parametrize("asked", [True, False])
async def test_token_ids_are_given_where_they_are_asked_for(asked: bool) -> None:
    """So that another gateway can stand before it: `lightningrl try` against one's own model."""
    with ModelServer(in_turn("Yo", "Yo")) as engine:
        async with (
            serving(engine) as url,
            openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="-") as client,
        ):
            extra = {"return_token_ids": asked}
            chat = await client.chat.completions.create(model="m", messages=HI, extra_body=extra)
            text = await client.completions.create(model="m", prompt="Hi", extra_body=extra)
    told = chat.to_dict(), text.choices[0].to_dict()
    assert [bool(one.get("prompt_token_ids")) for one in told] == [asked, asked]
    chosen = chat.choices[0].to_dict(), text.choices[0].to_dict()
    assert [bool(one.get("token_ids")) for one in chosen] == [asked, asked]


async def test_requests_are_rewritten_as_they_were_in_training() -> None:
    rules = RewriteRules(roles={"developer": "system"}, merge_instructions=True)
    asked = [{"role": one, "content": one} for one in ("system", "developer", "user")]
    with ModelServer(in_turn("Yo")) as engine:
        async with (
            serving(engine, rules) as url,
            openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="-") as client,
        ):
            await client.chat.completions.create(model="m", messages=asked)  # type: ignore[arg-type]
        sent = engine.arrivals[0].body["messages"]
    assert [one["role"] for one in sent] == ["system", "user"]
    assert "developer" in sent[0]["content"]


async def test_tools_that_the_service_would_run_are_left_out_as_in_training(
    caplog: pytest.LogCaptureFixture,
) -> None:
    tools: Any = [{"type": "custom", "name": "patch"}, {"type": "web_search"}]
    with ModelServer(
        lambda _: Answer("", tool_calls=(ToolCall("c", "patch", '{"input": "x"}'),))
    ) as engine:
        async with (
            serving(engine, RewriteRules(drop_hosted=True)) as url,
            openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="-") as client,
        ):
            await client.responses.create(model="m", input="Hi", tools=tools)
            reply = await client.responses.create(model="m", input="Hi", tools=tools)
        [sent] = engine.arrivals[0].body["tools"]
    assert sent["function"]["name"] == "patch"
    [item] = reply.output
    assert item.type == "custom_tool_call"
    assert item.input == "x"
    assert [one.message for one in caplog.records if "web_search" in one.message] == [
        "nobody runs 'web_search' of responses requests here: it is left out"
    ]


async def test_a_message_that_the_template_would_lose_is_refused() -> None:
    with ModelServer(in_turn("Yo")) as engine:
        async with (
            serving(engine, RewriteRules(lost=("tool",))) as url,
            openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="-", max_retries=0) as client,
        ):
            messages = [*HI, {"role": "tool", "tool_call_id": "c", "content": "4"}]
            with pytest.raises(openai.BadRequestError, match="tool"):
                await client.chat.completions.create(model="m", messages=messages)  # type: ignore[arg-type]


async def test_a_stream_and_a_response_are_answered_too() -> None:
    with ModelServer(in_turn("One")) as engine:
        async with (
            serving(engine) as url,
            openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="-") as client,
        ):
            stream = await client.chat.completions.create(model="m", messages=HI, stream=True)
            parts = [part.choices[0].delta.content or "" async for part in stream if part.choices]
            response = await client.responses.create(model="m", input="Hi")
    assert ("".join(parts), response.output_text) == ("One", "One")


async def test_anthropics_client_gets_tool_calls() -> None:
    import anthropic

    tool: Any = {"name": "weather", "input_schema": PARAMETERS}
    with ModelServer(in_turn(LOOK)) as engine:
        async with (
            serving(engine) as url,
            anthropic.AsyncAnthropic(base_url=url, api_key="-") as client,
        ):
            reply = await client.messages.create(
                model="claude", max_tokens=500, messages=HI, tools=[tool]
            )
    assert reply.stop_reason == "tool_use"
    [block] = reply.content
    assert (block.type, block.to_dict()["input"]) == ("tool_use", {"city": "Bern"})


async def test_tokens_are_counted_as_a_call_would_have_them() -> None:
    import anthropic

    rules = RewriteRules(merge_instructions=True)
    messages: list[Any] = [{"role": one, "content": one} for one in ("system", "system", "user")]
    with ModelServer(in_turn("Yo")) as engine:
        async with (
            serving(engine, rules) as url,
            openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="-") as client,
            anthropic.AsyncAnthropic(base_url=url, api_key="-") as other,
        ):
            reply = await client.responses.create(model="m", input=messages)
            counted = await client.responses.input_tokens.count(model="m", input=messages)
            of_anthropic = await other.messages.count_tokens(model="m", messages=HI)
            answer = await other.messages.create(model="m", max_tokens=9, messages=HI)
    assert reply.usage is not None
    assert counted.input_tokens == reply.usage.input_tokens
    assert of_anthropic.input_tokens == answer.usage.input_tokens


async def test_a_limit_beyond_the_context_is_cut_to_what_it_still_holds() -> None:
    def strict(request: dict[str, Any]) -> Answer:
        if request.get("max_tokens", 1) <= 9:
            return Answer("Yo")
        return Answer("This model's maximum context length is 256 tokens.", status=400)

    with ModelServer(strict) as engine:
        async with (
            serving(engine) as url,
            openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="-", max_retries=0) as client,
        ):
            reply = await client.chat.completions.create(model="m", messages=HI, max_tokens=500)
        assert [one.body.get("max_tokens") for one in engine.arrivals] == [500, None]
    assert reply.choices[0].message.content == "Yo"


async def test_a_client_that_tries_a_websocket_is_told_to_use_http() -> None:
    with ModelServer(in_turn("Yo")) as engine:
        async with serving(engine) as url, aiohttp.ClientSession() as session:
            asked = {"upgrade": "websocket", "connection": "upgrade"}
            async with session.get(f"{url}/v1/responses", headers=asked) as answer:
                assert answer.status == 426


def test_an_export_is_served_by_any_engine_with_the_rewrites_of_its_training(
    tmp_path: Path,
) -> None:
    rules = RewriteRules(roles={"developer": "system"})
    write_serving(tmp_path / SERVING, Serving("policy", "gpt-x", rules, None, "none", 64))
    url_file = tmp_path / "url"
    with ModelServer(in_turn("Yo")) as engine:
        command = ("serve", "--policy", str(tmp_path), "--engine", f"{engine.url}/", "--port", "0")
        process = subprocess.Popen(
            [sys.executable, "-m", "lightningrl.cli", *command, "--url-file", str(url_file)],
            stdout=subprocess.PIPE,
            env={**os.environ, "LIGHTNINGRL_POLICY_KEY": "sk-engine"},
        )
        try:
            assert process.stdout is not None
            assert b"serving" in process.stdout.readline()
            url = url_file.read_text(encoding="utf-8")
            with openai.OpenAI(base_url=f"{url}/v1", api_key="-") as client:
                asked: Any = [{"role": "developer", "content": "Be."}, *HI]
                reply = client.chat.completions.create(model="m", messages=asked)
        finally:
            process.terminate()
            process.wait()
            assert process.stdout is not None
            process.stdout.close()
        [arrival] = engine.arrivals
    assert reply.choices[0].message.content == "Yo"
    assert arrival.body["model"] == "gpt-x"
    assert arrival.body["messages"][0]["role"] == "system"
    assert arrival.headers["authorization"] == "Bearer sk-engine"


async def test_what_the_engine_refuses_and_unknown_routes_are_errors_of_the_dialect() -> None:
    with ModelServer(in_turn("Yo")) as engine:
        async with (
            serving(engine) as url,
            openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="-", max_retries=0) as client,
        ):
            engine.fail_next(1, status=400)
            with pytest.raises(openai.BadRequestError):
                await client.chat.completions.create(model="m", messages=HI)
            with pytest.raises(openai.NotFoundError, match="here are POST /v1/chat/completions"):
                await client.embeddings.create(model="m", input="Hi")


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ([], "give a STORE to serve, or a model by --policy"),
        (["s.db", "--chat-template", "hermes"], "--chat-template and --engine are of the latter"),
        (["s.db", "--engine", "http://h/v1"], "--chat-template and --engine are of the latter"),
        (["--policy", "nowhere", "--engine", "http://h/v1"], "'nowhere' has no serving.json"),
        (
            ["--policy", ".", "--engine", "http://h/v1", "--chat-template", "hermes"],
            "so give it to the engine",
        ),
        (["s.db", "--policy", "m"], "not a store; leave out: store"),
        (["--policy", "m", "--delete-down-to", "9"], "leave out: delete_down_to"),
    ],
)  # fmt: skip
def test_a_store_and_a_model_are_not_served_at_once(arguments: list[str], reason: str) -> None:
    done = CliRunner().invoke(commands, ["serve", *arguments])
    assert done.exit_code == 2
    assert reason in done.output
