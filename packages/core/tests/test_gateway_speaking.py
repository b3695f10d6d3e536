"""Streams that take long speak before their answer: one sampling, whatever the client's read timeout."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import aiohttp
import openai
import pytest

from lightningrl.gateway import GatewayLimits
from lightningrl.schema import CallStatus
from lightningrl_testkit.gateway import open_rig
from lightningrl_testkit.model_server import ModelServer

SOON = GatewayLimits(stream_silence_seconds=0.01, stream_comment_seconds=0.01, upstream_retries=0)
HI: list[Any] = [{"role": "user", "content": "Hi"}]
BODIES: dict[str, dict[str, Any]] = {
    "chat/completions": {"messages": HI},
    "responses": {"input": "Hi"},
    "messages": {"messages": HI, "max_tokens": 9},
    "completions": {"prompt": "Hi"},
}


@pytest.mark.parametrize("route", BODIES)
async def test_a_stream_speaks_before_its_answer_and_then_tells_all_of_it(
    tmp_path: Path, route: str
) -> None:
    with ModelServer() as engine:
        async with open_rig(tmp_path, limits=SOON) as rig, aiohttp.ClientSession() as session:
            await rig.register(engine.url)
            claim = await rig.claim()
            url, headers = f"{rig.url}/v1/{route}", {"authorization": f"Bearer {claim.key}"}
            body = {"model": "m", "stream": True, **BODIES[route]}
            engine.block()
            answer = await session.post(url, json=body, headers=headers)  # its headers are here
            first = await answer.content.readuntil(b"\n\n")
            engine.unblock()
            rest = await answer.read()
            async with session.post(url, json={**body, "stream": False}, headers=headers) as quick:
                await quick.read()
            [slow, _] = await rig.calls(claim)
    assert (answer.status, quick.status, engine.calls) == (200, 200, 2)
    assert answer.headers["x-request-id"] == slow.id
    assert first.startswith(b": ")
    events = [one for one in rest.split(b"\n\n") if one and not one.startswith(b": ")]
    said = b"".join(events)
    assert b"Hi" in said
    if route == "chat/completions":
        assert events[-1] == b"data: [DONE]"
    assert (slow.status, slow.http_status) == (CallStatus.DELIVERED, 200)


async def test_clients_get_an_error_that_comes_after_the_headers_and_the_record_its_status(
    tmp_path: Path,
) -> None:
    import anthropic

    with ModelServer() as engine:
        async with open_rig(tmp_path, limits=SOON) as rig:
            await rig.register(engine.url)
            claim = await rig.claim()
            base = rig.attempt_url(claim)

            async def opened(asked: Any) -> Any:
                engine.block()
                engine.fail_next(1, status=400)
                stream = await asked  # the headers are here
                engine.unblock()
                return [one async for one in stream]

            async with openai.AsyncOpenAI(
                base_url=base, api_key=claim.key, max_retries=0
            ) as client:
                chat = client.chat.completions.create(model="m", messages=HI, stream=True)
                with pytest.raises(openai.APIError):
                    await opened(chat)
                with pytest.raises(openai.APIError):
                    await opened(client.responses.create(model="m", input="Hi", stream=True))
            async with anthropic.AsyncAnthropic(
                base_url=base.removesuffix("/v1"), api_key=claim.key, max_retries=0
            ) as client:
                asked = client.messages.create(model="m", messages=HI, max_tokens=9, stream=True)
                with pytest.raises(anthropic.APIError):
                    await opened(asked)
            calls = await rig.calls(claim)
    assert [(call.status, call.http_status) for call in calls] == [(CallStatus.FAILED, 400)] * 3


async def test_a_client_with_a_short_read_timeout_is_answered_by_one_sampling(
    tmp_path: Path,
) -> None:
    with ModelServer() as engine:
        async with open_rig(tmp_path, limits=SOON) as rig:
            await rig.register(engine.url)
            claim = await rig.claim()
            async with openai.AsyncOpenAI(
                base_url=rig.attempt_url(claim), api_key=claim.key, timeout=1.0
            ) as client:
                engine.block()
                stream = await client.chat.completions.create(model="m", messages=HI, stream=True)
                async with asyncio.timeout(30):
                    begun = await anext(aiter(stream))
                assert begun.choices[0].delta.content == ""
                engine.unblock()
                rest = [one async for one in stream]
            calls = await rig.calls(claim)
    assert "".join(one.choices[0].delta.content or "" for one in rest if one.choices) == "Hi"
    assert (engine.calls, len(calls)) == (1, 1)
