"""Agents in any language, on any line: other clients, many at once, slow, broken and too big."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from lightningrl.gateway import GatewayLimits
from lightningrl.schema import CallStatus, Claim, Dialect
from lightningrl_testkit.gateway import GatewayRig, open_rig
from lightningrl_testkit.model_server import Answer, ModelServer, in_turn

QUICK = GatewayLimits(upstream_retries=1, backoff_seconds=0.001, body_bytes=20_000)


def body(route: str, text: str, **fields: Any) -> dict[str, Any]:
    """The smallest request of a dialect that says `text`."""
    said: list[Any] = [{"role": "user", "content": text}]
    by_route: dict[str, dict[str, Any]] = {
        "chat/completions": {"messages": said},
        "responses": {"input": text},
        "messages": {"messages": said, "max_tokens": 100},
        "completions": {"prompt": text},
    }
    return {"model": "m", **by_route[route], **fields}


ROUTES = ["chat/completions", "responses", "messages", "completions"]
DIALECTS = dict(zip(ROUTES, Dialect, strict=True))


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[GatewayRig]:
    async with open_rig(tmp_path, limits=QUICK) as rig:
        yield rig


def key_of(claim: Claim) -> dict[str, str]:
    return {"authorization": f"Bearer {claim.key}"}


def is_error(route: str, whole: dict[str, Any]) -> bool:
    """Whether it is an error in the dialect's form."""
    return bool(whole["error"]["message"]) and ("type" in whole) == (route == "messages")


# -- many at once ------------------------------------------------------------------------------


async def test_64_concurrent_rollouts_in_mixed_dialects_keep_their_calls(rig: GatewayRig) -> None:
    with ModelServer() as engine:
        await rig.register(engine.url)
        claims = [await rig.claim() for _ in range(64)]
        engine.block()  # all calls are under way at once
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

            async def call(index: int, route: str, form: int) -> str:
                claim = claims[index]
                base = [
                    f"{rig.url}/v1",
                    rig.attempt_url(claim),
                    f"{rig.url}/keys/{claim.key}/v1",
                ][form]
                async with session.post(
                    f"{base}/{route}",
                    json=body(route, f"rollout-{index}.", stream=form == 1),
                    headers={} if form == 2 else key_of(claim),
                ) as response:
                    assert response.status == 200
                    return await response.text()

            calls = [
                call(index, route, (index + place) % 3)
                for index in range(64)
                for place, route in enumerate(ROUTES)
            ]
            answering = asyncio.gather(*calls)
            await engine.arrived(256)
            engine.unblock()
            answers = await answering
    for place, answer in enumerate(answers):
        assert f"rollout-{place // 4}." in answer
    for index, claim in enumerate(claims):
        recorded = await rig.calls(claim)
        assert sorted(call.dialect for call in recorded) == sorted(Dialect)
        for one in recorded:
            assert f'"rollout-{index}."'.encode() in one.request
            assert f"rollout-{index}.".encode() in one.choices[0].message


# -- what goes wrong on the way ----------------------------------------------------------------


@pytest.mark.parametrize("route", ROUTES)
async def test_a_client_that_hangs_up_on_a_stream_leaves_a_cancelled_call(
    rig: GatewayRig, route: str
) -> None:
    with ModelServer() as engine:
        await rig.register(engine.url)
        claim = await rig.claim()
        engine.block()
        async with aiohttp.ClientSession() as session:
            url = f"{rig.url}/v1/{route}"
            asking = asyncio.create_task(
                session.post(url, json=body(route, "Hi", stream=True), headers=key_of(claim))
            )
            await engine.arrived(1)
            asking.cancel()
            await engine.hung_up(1)
            engine.unblock()
            async with session.post(url, json=body(route, "Hi"), headers=key_of(claim)) as after:
                assert after.status == 200
    call, delivered = await rig.calls(claim)
    assert delivered.status is CallStatus.DELIVERED
    assert (call.status, call.http_status, call.choices) == (CallStatus.CANCELLED, 499, ())
    assert call.dialect is DIALECTS[route]


@pytest.mark.parametrize("route", ROUTES)
async def test_an_engine_that_dies_in_the_middle_fails_the_call_in_the_dialects_form(
    rig: GatewayRig, route: str
) -> None:
    with ModelServer(in_turn(Answer("Yo", dies=True))) as engine:
        await rig.register(engine.url)
        claim = await rig.claim()
        async with (
            aiohttp.ClientSession() as session,
            session.post(
                f"{rig.url}/v1/{route}",
                json=body(route, "Hi", stream=True),
                headers=key_of(claim),
            ) as response,
        ):
            assert response.status == 502
            assert response.headers["x-should-retry"] == "true"
            assert is_error(route, await response.json())
    [call] = await rig.calls(claim)
    assert (call.status, call.http_status, call.upstream_retries) == (CallStatus.FAILED, 502, 1)
    assert (call.dialect, call.choices) == (DIALECTS[route], ())


@pytest.mark.parametrize(
    "message", [{"content": "x"}, {"content": None, "tool_calls": 5}, {"tool_calls": ["x"]}]
)
@pytest.mark.parametrize("route", ROUTES[:3])
async def test_an_answer_that_is_no_message_is_the_engines_failure_not_a_crash(
    rig: GatewayRig, route: str, message: dict[str, Any]
) -> None:
    with ModelServer(in_turn(Answer("x", extra={"message": message}))) as engine:
        await rig.register(engine.url)
        claim = await rig.claim()
        for stream in (False, True):
            async with (
                aiohttp.ClientSession() as session,
                session.post(
                    f"{rig.url}/v1/{route}",
                    json=body(route, "Hi", stream=stream),
                    headers=key_of(claim),
                ) as response,
            ):
                assert response.status in (200, 502)
                if response.status == 502:
                    whole = await response.json()
                    assert is_error(route, whole)
                    assert "can't be read" in whole["error"]["message"]
    for call in await rig.calls(claim):
        assert (call.status is CallStatus.DELIVERED) == (call.http_status == 200)


@pytest.mark.parametrize("route", ROUTES)
async def test_a_huge_body_is_refused_in_the_dialects_form(rig: GatewayRig, route: str) -> None:
    claim = await rig.claim()
    async with (
        aiohttp.ClientSession() as session,
        session.post(
            f"{rig.url}/v1/{route}", json=body(route, "x" * 20_001), headers=key_of(claim)
        ) as response,
    ):
        assert response.status == 413
        assert is_error(route, await response.json())
    assert await rig.calls(claim) == []


async def test_a_client_that_sends_slowly_holds_nobody_up(rig: GatewayRig) -> None:
    with ModelServer() as engine:
        await rig.register(engine.url)
        claim = await rig.claim()
        host, port = rig.url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        whole = json.dumps(body("responses", "slow")).encode()
        head = (
            f"POST /v1/responses HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n"
            f"Authorization: Bearer {claim.key}\r\nContent-Length: {len(whole)}\r\n\r\n"
        )
        writer.write(head.encode() + whole[:9])
        await writer.drain()
        async with (
            aiohttp.ClientSession() as session,
            session.post(
                f"{rig.url}/v1/messages", json=body("messages", "quick"), headers=key_of(claim)
            ) as response,
        ):
            assert response.status == 200  # while the first request is not whole yet
        writer.write(whole[9:])
        await writer.drain()
        answer = await reader.read()
        writer.close()
        await writer.wait_closed()
    assert answer.startswith(b"HTTP/1.1 200")
    assert [call.dialect for call in await rig.calls(claim)] == [
        Dialect.ANTHROPIC,
        Dialect.RESPONSES,
    ]


# -- other languages ---------------------------------------------------------------------------


async def ran(*command: str, folder: Path, **variables: str) -> str:
    """What a program prints; the gateway answers it from this event loop meanwhile."""
    path = {"PATH": f"{Path(command[0]).parent}:/usr/bin:/bin", "HOME": str(folder)}

    def run() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command, cwd=folder, env=path | variables, capture_output=True, text=True, timeout=120
        )

    done = await asyncio.to_thread(run)
    assert done.returncode == 0, done.stderr
    return done.stdout


async def test_curl_is_an_agent(rig: GatewayRig, tmp_path: Path) -> None:
    curl = shutil.which("curl")
    if curl is None:
        pytest.skip("curl is not installed")
    with ModelServer() as engine:
        await rig.register(engine.url)
        claim = await rig.claim()
        for route in ROUTES:
            printed = await ran(
                *(curl, "--silent", "--no-buffer", f"{rig.url}/v1/{route}"),
                *("-H", f"x-api-key: {claim.key}", "-H", "content-type: application/json"),
                *("-d", json.dumps(body(route, "Hallo", stream=True))),
                folder=tmp_path,
            )
            assert "Hallo" in printed
            assert "data: " in printed
    assert len(await rig.calls(claim)) == len(ROUTES)


FETCH = """
const base = process.env.OPENAI_BASE_URL, key = process.env.OPENAI_API_KEY;
const reply = await fetch(base + "/responses", {
  method: "POST",
  headers: { authorization: `Bearer ${key}`, "content-type": "application/json" },
  body: JSON.stringify({ model: "m", input: "Hallo", stream: true }),
});
let text = "", rest = "";
const decoder = new TextDecoder();
for await (const piece of reply.body) {
  const lines = (rest + decoder.decode(piece, { stream: true })).split("\\n");
  rest = lines.pop();
  for (const line of lines.filter((one) => one.startsWith("data: "))) {
    const event = JSON.parse(line.slice(6));
    if (event.type === "response.output_text.delta") text += event.delta;
  }
}
console.log(text);
"""
PACKAGE = """
import OpenAI from "openai";
const client = new OpenAI();
const whole = await client.responses.create({ model: "m", input: "Hallo" });
let text = whole.output_text;
const stream = await client.chat.completions.create({
  model: "m", messages: [{ role: "user", content: " Welt" }], stream: true,
});
for await (const chunk of stream) text += chunk.choices[0]?.delta?.content ?? "";
console.log(text);
"""


def node() -> str:
    found = shutil.which("node")
    if found is None:
        pytest.skip("node is not installed")
    return found


async def test_nodes_fetch_is_an_agent(rig: GatewayRig, tmp_path: Path) -> None:
    program = tmp_path / "agent.mjs"
    program.write_text(FETCH, encoding="utf-8")
    with ModelServer() as engine:
        await rig.register(engine.url)
        claim = await rig.claim()
        variables = {"OPENAI_BASE_URL": rig.attempt_url(claim), "OPENAI_API_KEY": claim.key}
        assert await ran(node(), str(program), folder=tmp_path, **variables) == "Hallo\n"
    [call] = await rig.calls(claim)
    assert call.dialect is Dialect.RESPONSES


@pytest.mark.long
async def test_nodes_openai_package_is_an_agent(rig: GatewayRig, tmp_path: Path) -> None:
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("npm is not installed")
    install = (npm, "install", "--no-audit", "--no-fund", "--silent", "openai")
    installed = await asyncio.to_thread(
        subprocess.run, install, cwd=tmp_path, capture_output=True, text=True, timeout=250
    )
    if installed.returncode != 0:
        pytest.skip(f"npm can't install openai here: {installed.stderr.strip()[-200:]}")
    program = tmp_path / "agent.mjs"
    program.write_text(PACKAGE, encoding="utf-8")
    with ModelServer() as engine:
        await rig.register(engine.url)
        claim = await rig.claim()
        variables = {"OPENAI_BASE_URL": rig.attempt_url(claim), "OPENAI_API_KEY": claim.key}
        assert await ran(node(), str(program), folder=tmp_path, **variables) == "Hallo Welt\n"
    assert [call.dialect for call in await rig.calls(claim)] == [Dialect.RESPONSES, Dialect.CHAT]
