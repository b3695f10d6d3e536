"""A streaming client gets the finished answer in chunks that add up to exactly it."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import openai
import pytest

from lightningrl.schema import Claim
from lightningrl_testkit.gateway import GatewayRig, open_rig
from lightningrl_testkit.model_server import Answer, ModelServer, ToolCall, in_turn

HI = [{"role": "user", "content": "Hi"}]
# logprob(id, at) = -(1 + (id + at) mod 64) / 64 for "Y", "o", end
YO_LOGPROBS = [-26 / 64, -49 / 64, -7 / 64]


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[GatewayRig]:
    async with open_rig(tmp_path) as rig:
        yield rig


def agent(rig: GatewayRig, claim: Claim) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=rig.attempt_url(claim), api_key=claim.key)


WEATHER = Answer(
    "Let me look.",
    tool_calls=(
        ToolCall("call-1", "weather", '{"city": "Berlin"}'),
        ToolCall("call-2", "time", "{}"),
    ),
)


async def test_a_stream_adds_up_to_the_answer_without_stream(rig: GatewayRig) -> None:
    with ModelServer(in_turn(WEATHER)) as engine:
        await rig.register(engine.url)
        claim = await rig.claim()
        async with agent(rig, claim) as client:
            whole = await client.chat.completions.create(model="m", messages=HI)
            async with client.chat.completions.stream(model="m", messages=HI) as stream:
                streamed = await stream.get_final_completion()
        assert all("stream" not in arrival.body for arrival in engine.arrivals)
    one, two = whole.choices[0], streamed.choices[0]
    assert two.finish_reason == one.finish_reason == "tool_calls"
    assert two.message.content == one.message.content == "Let me look."
    assert one.message.tool_calls
    assert two.message.tool_calls
    told = [
        (call.id, call.function.name, call.function.arguments) for call in one.message.tool_calls
    ]
    assert told == [
        ("call-1", "weather", '{"city": "Berlin"}'),
        ("call-2", "time", "{}"),
    ]
    assert told == [
        (call.id, call.function.name, call.function.arguments) for call in two.message.tool_calls
    ]
    first, second = await rig.calls(claim)
    assert first.choices == second.choices


async def raw_stream(rig: GatewayRig, claim: Claim, **fields: Any) -> list[str]:
    """The data of each event of one streamed call."""
    url = rig.attempt_url(claim) + "/chat/completions"
    headers = {"authorization": f"Bearer {claim.key}"}
    body = {"model": "m", "messages": HI, "stream": True, **fields}
    async with (
        aiohttp.ClientSession() as session,
        session.post(url, json=body, headers=headers) as response,
    ):
        assert response.content_type == "text/event-stream"
        text = await response.text()
    events = text.split("\n\n")
    assert events.pop() == ""
    return [event.removeprefix("data: ") for event in events]


async def test_a_stream_is_role_content_tool_calls_finish_usage_done(rig: GatewayRig) -> None:
    with ModelServer(in_turn(WEATHER)) as engine:
        await rig.register(engine.url)
        options = {"include_usage": True}
        *events, done = await raw_stream(rig, await rig.claim(), stream_options=options)
    assert done == "[DONE]"
    *chunks, last = [json.loads(event) for event in events]
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert [chunk["choices"][0]["delta"] for chunk in chunks] == [
        {"role": "assistant", "content": ""},
        {"content": "Let me look."},
        {
            "tool_calls": [
                {
                    "index": 0,
                    "id": "call-1",
                    "type": "function",
                    "function": {"name": "weather", "arguments": ""},
                }
            ]
        },
        {"tool_calls": [{"index": 0, "function": {"arguments": '{"city": "Berlin"}'}}]},
        {
            "tool_calls": [
                {
                    "index": 1,
                    "id": "call-2",
                    "type": "function",
                    "function": {"name": "time", "arguments": ""},
                }
            ]
        },
        {"tool_calls": [{"index": 1, "function": {"arguments": "{}"}}]},
        {},
    ]
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None] * 6 + ["tool_calls"]
    assert {chunk["usage"] for chunk in chunks} == {None}
    assert last["choices"] == []
    assert last["usage"]["prompt_tokens"] == 5


async def test_an_answer_of_tool_calls_alone_has_no_content_in_either_form(
    rig: GatewayRig,
) -> None:
    silent = Answer(None, tool_calls=(ToolCall("call-1", "weather", "{}"),))
    with ModelServer(in_turn(silent)) as engine:
        await rig.register(engine.url)
        claim = await rig.claim()
        async with agent(rig, claim) as client:
            whole = await client.chat.completions.create(model="m", messages=HI)
            async with client.chat.completions.stream(model="m", messages=HI) as stream:
                streamed = await stream.get_final_completion()
    assert whole.choices[0].message.content is None
    assert streamed.choices[0].message.content is None
    assert streamed.choices[0].message.tool_calls[0].function.name == "weather"


async def test_a_stream_without_include_usage_has_it_in_its_last_chunk_and_no_token_ids(
    rig: GatewayRig,
) -> None:
    with ModelServer(in_turn("Yo"), version=0) as engine:
        await rig.register(engine.url)
        events = await raw_stream(rig, await rig.claim())
    assert len(events) == 4  # role, content, finish, [DONE]
    assert ["usage" in event for event in events] == [False, False, True, False]
    last = json.loads(events[2])
    assert last["choices"][0]["finish_reason"] == "stop"
    assert last["usage"]["completion_tokens"] == 3  # Yo and the end
    for word in ("token_ids", "weight_versions", 'logprob"'):
        assert not any(word in event for event in events)


async def test_a_stream_with_log_probs_has_them_once(rig: GatewayRig) -> None:
    with ModelServer(in_turn("Yo")) as engine:
        await rig.register(engine.url)
        *events, _ = await raw_stream(rig, await rig.claim(), logprobs=True)
    found = [json.loads(event)["choices"][0].get("logprobs") for event in events]
    assert found[0] is None
    assert [one["logprob"] for one in found[1]["content"]] == YO_LOGPROBS
    assert found[2] is None
