"""OpenAI's completions of a plain text at the gateway, spoken by the real SDK."""

import json
import struct
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import openai
import pytest

from lightningrl.conversation.history import messages_of
from lightningrl.schema import CallStatus, Claim, Dialect, Sampling
from lightningrl_testkit.gateway import GatewayRig, open_rig
from lightningrl_testkit.model_server import ModelServer, in_turn

YO_IDS = [89, 111, 260]
YO_LOGPROBS = [-26 / 64, -49 / 64, -7 / 64]  # see test_gateway_calls


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[GatewayRig]:
    async with open_rig(tmp_path) as rig:
        yield rig


def agent(rig: GatewayRig, claim: Claim) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=rig.attempt_url(claim), api_key=claim.key, max_retries=0)


def int32(*values: int) -> bytes:
    return struct.pack(f"<{len(values)}i", *values)


@pytest.mark.parametrize("prompt", ["Hi", ["Hi"], [72, 105], [[72, 105]]])
async def test_a_completion_is_a_call_with_its_tokens(rig: GatewayRig, prompt: Any) -> None:
    with ModelServer(in_turn("Yo"), version=0) as engine:
        await rig.register(engine.url)
        claim = await rig.claim(Sampling())
        async with agent(rig, claim) as client:
            reply = await client.completions.create(
                model="davinci",
                prompt=prompt,
                max_tokens=50,
                extra_headers={"x-lightningrl-step": "s-1"},
            )
    assert (reply.id, reply.model) == ("s-1", "davinci")
    [choice] = reply.choices
    assert (choice.text, choice.finish_reason, choice.logprobs) == ("Yo", "stop", None)
    assert reply.usage is not None
    assert (reply.usage.prompt_tokens, reply.usage.completion_tokens) == (2, 3)
    [call] = await rig.calls(claim)
    assert (call.dialect, call.status) == (Dialect.COMPLETIONS, CallStatus.DELIVERED)
    assert json.loads(call.request) == {"model": "davinci", "prompt": prompt, "max_tokens": 50}
    assert call.prompt_ids == int32(72, 105)  # no template between the text and its tokens
    [recorded] = call.choices
    assert recorded.token_ids == int32(*YO_IDS)
    assert recorded.logprobs == struct.pack("<3f", *YO_LOGPROBS)
    assert recorded.untrainable is None
    assert json.loads(recorded.message) == {"role": "assistant", "content": "Yo"}
    assert messages_of(call) == [{"role": "user", "content": prompt}]
    asked = engine.arrivals[0].body
    assert (asked["model"], asked["prompt"], asked["logprobs"]) == ("policy", prompt, 0)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"response_format": {"type": "json_object"}}, "sampled under a grammar (response_format)"),
        ({"response_format": {"type": "text"}}, None),
        ({"response_format": None}, None),
        ({"response_format": 5}, "sampled under a grammar (response_format)"),
        ({"json_schema": "{}"}, "sampled under a grammar (json_schema)"),
    ],
)
async def test_a_grammar_is_a_grammar_whatever_the_dialect(
    rig: GatewayRig, fields: dict[str, Any], reason: str | None
) -> None:
    with ModelServer() as engine:
        await rig.register(engine.url)
        claim = await rig.claim(Sampling())
        async with agent(rig, claim) as client:
            await client.completions.create(model="m", prompt="Hi", extra_body=fields)
    [call] = await rig.calls(claim)
    assert call.choices[0].untrainable == reason


async def test_a_stream_is_text_end_usage_done(rig: GatewayRig) -> None:
    with ModelServer(in_turn("Yo")) as engine:
        await rig.register(engine.url)
        async with agent(rig, await rig.claim()) as client:
            stream = await client.completions.create(
                model="m", prompt="Hi", stream=True, stream_options={"include_usage": True}
            )
            chunks = [chunk async for chunk in stream]
    told = [(chunk.choices[0].text, chunk.choices[0].finish_reason) for chunk in chunks[:-1]]
    assert told == [("Yo", None), ("", "stop")]
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 3


async def test_log_probs_are_the_agents_only_if_it_asked(rig: GatewayRig) -> None:
    with ModelServer(in_turn("Yo")) as engine:
        await rig.register(engine.url)
        claim = await rig.claim()
        async with agent(rig, claim) as client:
            reply = await client.completions.create(model="m", prompt="Hi", logprobs=1, n=2)
    assert [one.index for one in reply.choices] == [0, 1]
    assert reply.choices[0].logprobs is not None
    assert reply.choices[0].logprobs.token_logprobs == YO_LOGPROBS
    assert engine.arrivals[0].body["logprobs"] == 1
    [call] = await rig.calls(claim)
    assert len(call.choices) == 2


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({"prompt": ["a", "b"]}, "unsupported_value", "prompt"),
        ({"prompt": [[1], [2]]}, "unsupported_value", "prompt"),
        ({"prompt": None}, "invalid_type", "prompt"),
        ({"echo": True}, "unsupported_parameter", "echo"),
        ({"best_of": 2}, "unsupported_parameter", "best_of"),
        ({"suffix": "x"}, "unsupported_parameter", "suffix"),
    ],
)
async def test_what_one_call_cant_be_is_refused(
    rig: GatewayRig, fields: dict[str, Any], code: str, param: str
) -> None:
    body = {"model": "m", "prompt": "Hi", **fields}
    async with agent(rig, await rig.claim()) as client:
        with pytest.raises(openai.BadRequestError) as failed:
            await client.post("/completions", cast_to=object, body=body)
    assert (failed.value.code, failed.value.param) == (code, param)
