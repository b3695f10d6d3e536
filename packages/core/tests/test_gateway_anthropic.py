"""Anthropic's messages at the gateway, spoken by the real SDK: blocks, tools, streams, errors."""

from __future__ import annotations

import asyncio
import json
import struct
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp
import pydantic
import pytest

from lightningrl.conversation.history import messages_of
from lightningrl.schema import CallStatus, Claim, Dialect, RewriteRules, Sampling
from lightningrl_testkit.gateway import GatewayRig, open_rig
from lightningrl_testkit.model_server import (
    Answer,
    ModelServer,
    ToolCall,
    answer_ids,
    in_turn,
    prompt_ids,
)

if TYPE_CHECKING:
    import anthropic

HI: list[Any] = [{"role": "user", "content": "Hi"}]
WEATHER: Any = {
    "name": "weather",
    "description": "Tells the weather.",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}},
}
LOOK = Answer(
    "Let me look.",
    tool_calls=(
        ToolCall("call-1", "weather", '{"city": "Berlin"}'),
        ToolCall("call-2", "weather", '{"city": "Bern"}'),
    ),
)


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[GatewayRig]:
    async with open_rig(tmp_path) as rig:
        yield rig


def agent(rig: GatewayRig, claim: Claim) -> anthropic.AsyncAnthropic:
    import anthropic

    # The SDK appends /v1/messages, and sends the key as x-api-key.
    base_url = rig.attempt_url(claim).removesuffix("/v1")
    return anthropic.AsyncAnthropic(base_url=base_url, api_key=claim.key, max_retries=0)


def int32(values: list[int]) -> bytes:
    return struct.pack(f"<{len(values)}i", *values)


# -- one call ----------------------------------------------------------------------------------


async def test_a_message_is_a_call_with_its_tokens(rig: GatewayRig) -> None:
    with ModelServer(in_turn("Yo"), version=0) as engine:
        await rig.register(engine.url)
        claim = await rig.claim(Sampling())
        async with agent(rig, claim) as client:
            reply = await client.messages.create(
                model="claude",
                max_tokens=100,
                system="Be short.",
                messages=HI,
                extra_headers={"x-lightningrl-step": "s-1"},
            )
    assert (reply.id, reply.model, reply.stop_reason) == ("msg_s-1", "claude", "end_turn")
    assert [block.to_dict() for block in reply.content] == [{"type": "text", "text": "Yo"}]
    messages = [{"role": "system", "content": "Be short."}, *HI]
    prompt = prompt_ids(messages)
    assert (reply.usage.input_tokens, reply.usage.output_tokens) == (len(prompt), 3)
    [call] = await rig.calls(claim)
    assert (call.dialect, call.status) == (Dialect.ANTHROPIC, CallStatus.DELIVERED)
    assert json.loads(call.request) == {
        "model": "claude",
        "max_tokens": 100,
        "system": "Be short.",
        "messages": HI,
    }
    assert call.prompt_ids == int32(prompt)
    [choice] = call.choices
    assert choice.token_ids == int32([89, 111, 260])
    assert choice.untrainable is None
    assert messages_of(call) == messages


async def test_the_engine_is_asked_in_its_own_words(rig: GatewayRig) -> None:
    with ModelServer() as engine:
        await rig.register(engine.url)
        claim = await rig.claim()
        async with agent(rig, claim) as client:
            await client.messages.create(
                model="m",
                max_tokens=50,
                messages=HI,
                tools=[WEATHER],
                tool_choice={"type": "auto", "disable_parallel_tool_use": True},
                stop_sequences=["END"],
                thinking={"type": "disabled"},
                metadata={"user_id": "u"},
                extra_body={"temperature": 0.5, "top_k": 4},
            )
        [arrival] = engine.arrivals
    assert arrival.body == {
        "model": "policy",
        "messages": HI,
        "max_tokens": 50,
        "tools": [
            {
                "type": "function",
                "function": {
                    "name": "weather",
                    "description": "Tells the weather.",
                    "parameters": WEATHER["input_schema"],
                },
            }
        ],
        "tool_choice": "auto",
        "parallel_tool_calls": False,
        "stop": ["END"],
        "chat_template_kwargs": {"enable_thinking": False},
        "temperature": 0.5,
        "top_k": 4,
        "logprobs": True,
        "return_token_ids": True,
    }
    [call] = await rig.calls(claim)
    assert call.choices[0].untrainable == "sampled otherwise (temperature=0.5, top_k=4)"


@pytest.mark.parametrize(
    ("answer", "max_tokens", "reason"),
    [
        (Answer("Yo"), 100, ("end_turn", None)),
        (Answer("Yo"), 1, ("max_tokens", None)),
        (Answer("Yo", extra={"stop_reason": "END"}), 100, ("stop_sequence", "END")),
        (
            Answer(tool_calls=(ToolCall("c", "f", "{}"),), finish_reason="stop"),
            100,
            ("tool_use", None),
        ),
        (LOOK, 1000, ("tool_use", None)),
        (Answer(extra={"message": {"role": "assistant", "refusal": "No."}}), 9, ("refusal", None)),
    ],
)
async def test_an_answer_says_why_it_ended(
    rig: GatewayRig, answer: Answer, max_tokens: int, reason: tuple[str, str | None]
) -> None:
    with ModelServer(in_turn(answer)) as engine:
        await rig.register(engine.url)
        claim = await rig.claim()
        async with agent(rig, claim) as client:
            reply = await client.messages.create(model="m", max_tokens=max_tokens, messages=HI)
    assert (reply.stop_reason, reply.stop_sequence) == reason
    [call] = await rig.calls(claim)
    assert call.choices[0].untrainable is None


async def test_structured_output_is_asked_for_and_not_trained(rig: GatewayRig) -> None:
    class Weather(pydantic.BaseModel):
        city: str

    with ModelServer(in_turn('{"city": "Bern"}')) as engine:
        await rig.register(engine.url)
        claim = await rig.claim(Sampling())
        async with agent(rig, claim) as client:
            reply = await client.messages.parse(
                model="m", max_tokens=99, messages=HI, output_format=Weather
            )
    assert reply.parsed_output == Weather(city="Bern")
    asked = engine.arrivals[0].body["response_format"]
    assert asked["json_schema"]["schema"]["required"] == ["city"]
    [call] = await rig.calls(claim)
    assert call.choices[0].untrainable == "sampled under a grammar (response_format)"


# -- conversations -----------------------------------------------------------------------------


async def test_tool_uses_and_their_results_continue_the_tokens(rig: GatewayRig) -> None:
    with ModelServer(in_turn(LOOK, "Wet.")) as engine:
        await rig.register(engine.url)
        claim = await rig.claim()
        async with agent(rig, claim) as client:
            first = await client.messages.create(
                model="m", max_tokens=1000, messages=HI, tools=[WEATHER]
            )
            results: Any = [
                {"type": "tool_result", "tool_use_id": "call-1", "content": "rain"},
                {
                    "type": "tool_result",
                    "tool_use_id": "call-2",
                    "content": [{"type": "text", "text": "sun"}],
                },
                {"type": "text", "text": "So?"},
            ]
            history: list[Any] = [
                *HI,
                {"role": "assistant", "content": first.content},
                {"role": "user", "content": results},
            ]
            second = await client.messages.create(
                model="m", max_tokens=1000, messages=history, tools=[WEATHER]
            )
        assert [messages_of(call) for call in await rig.calls(claim)] == [
            arrival.body["messages"] for arrival in engine.arrivals
        ]
    assert [block.to_dict() for block in first.content] == [
        {"type": "text", "text": "Let me look."},
        {"type": "tool_use", "id": "call-1", "name": "weather", "input": {"city": "Berlin"}},
        {"type": "tool_use", "id": "call-2", "name": "weather", "input": {"city": "Bern"}},
    ]
    assert second.content[0].to_dict() == {"type": "text", "text": "Wet."}
    assert [message["role"] for message in engine.arrivals[1].body["messages"]] == [
        "user", "assistant", "tool", "tool", "user",
    ]  # fmt: skip
    one, two = await rig.calls(claim)
    assert two.prompt_ids.startswith(one.prompt_ids + int32(answer_ids(LOOK)))


@pytest.mark.parametrize(
    "arguments",
    [
        '{"city": ',
        '"Berlin"',
        r'{"city": "\ud800"}',
        '{"city": NaN}',
        '{"city": 1e400}',
        pytest.param('{"city": ' + "[" * 2000, id="deep"),
        pytest.param('{"city": %s}' % ("1" * 5000), id="digits"),
    ],
)
async def test_arguments_that_are_no_json_object_come_back_as_they_were(
    rig: GatewayRig, arguments: str
) -> None:
    broken = Answer(None, tool_calls=(ToolCall("call-1", "weather", arguments),))
    with ModelServer(in_turn(broken, "Oh.")) as engine:
        await rig.register(engine.url)
        claim = await rig.claim()
        async with agent(rig, claim) as client:
            first = await client.messages.create(model="m", max_tokens=9000, messages=HI)
            result: Any = {"type": "tool_result", "tool_use_id": "call-1", "content": "bad JSON"}
            history: list[Any] = [
                *HI,
                {"role": "assistant", "content": first.content},
                {"role": "user", "content": [result]},
            ]
            await client.messages.create(model="m", max_tokens=9000, messages=history)
    [use] = first.content
    assert use.type == "tool_use"
    assert use.input == {"INVALID_JSON": arguments}
    one, two = await rig.calls(claim)
    assert two.prompt_ids.startswith(one.prompt_ids + one.choices[0].token_ids)


async def test_reasoning_is_a_thinking_block_and_goes_back(rig: GatewayRig) -> None:
    message = {"role": "assistant", "content": "Yo", "reasoning": "Greet."}
    with ModelServer(in_turn(Answer("Yo", extra={"message": message}))) as engine:
        await rig.register(engine.url)
        async with agent(rig, await rig.claim()) as client:
            thinking: Any = {"type": "enabled", "budget_tokens": 1024}
            first = await client.messages.create(
                model="m", max_tokens=2000, messages=HI, thinking=thinking
            )
            history = [*HI, {"role": "assistant", "content": first.content}, *HI]
            await client.messages.create(model="m", max_tokens=100, messages=history)
    assert [block.type for block in first.content] == ["thinking", "text"]
    assert engine.arrivals[1].body["messages"][1] == message


@pytest.mark.parametrize("thinks", [True, False])
async def test_nobody_is_shown_thinking_who_did_not_ask(rig: GatewayRig, thinks: bool) -> None:
    message = {"role": "assistant", "content": "Yo", "reasoning": "Greet."}
    with ModelServer(in_turn(Answer("Yo", extra={"message": message}))) as engine:
        await rig.register(engine.url, rules=RewriteRules(thinks=thinks))
        claim = await rig.claim()
        async with agent(rig, claim) as client:
            answer = await client.messages.create(model="m", max_tokens=100, messages=HI)
    assert [block.type for block in answer.content] == ["text"]
    told = engine.arrivals[0].body.get("chat_template_kwargs")
    assert told == ({"enable_thinking": False} if thinks else None)
    [call] = await rig.calls(claim)
    assert [one.name for one in call.rewrites] == (["no_thinking"] if thinks else [])
    assert b'"reasoning":"Greet."' in call.choices[0].message.replace(b": ", b":")


async def test_images_and_documents_reach_the_engine(rig: GatewayRig) -> None:
    blocks: Any = [
        {"type": "text", "text": "What is it?"},
        {
            "type": "image",
            "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"},
        },
        {"type": "image", "source": {"type": "url", "url": "http://host/i.png"}},
        {
            "type": "document",
            "source": {"type": "text", "media_type": "text/plain", "data": "a document"},
        },
    ]
    with ModelServer() as engine:
        await rig.register(engine.url)
        async with agent(rig, await rig.claim()) as client:
            await client.messages.create(
                model="m", max_tokens=100, messages=[{"role": "user", "content": blocks}]
            )
        [message] = engine.arrivals[0].body["messages"]
    assert message["content"] == [
        {"type": "text", "text": "What is it?"},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}},
        {"type": "image_url", "image_url": {"url": "http://host/i.png"}},
        {"type": "text", "text": "a document"},
    ]


# -- streams -----------------------------------------------------------------------------------


async def test_a_stream_is_the_services_events_in_order_and_adds_up(rig: GatewayRig) -> None:
    with ModelServer(in_turn(LOOK)) as engine:
        await rig.register(engine.url)
        claim = await rig.claim()
        ask: Any = {"model": "m", "max_tokens": 1000, "messages": HI}
        async with agent(rig, claim) as client:
            whole = await client.messages.create(**ask)
            async with client.messages.stream(**ask) as stream:
                final = await stream.get_final_message()
        async with (
            aiohttp.ClientSession() as session,
            session.post(
                rig.attempt_url(claim) + "/messages",
                json={**ask, "stream": True},
                headers={"x-api-key": claim.key, "anthropic-version": "2023-06-01"},
            ) as response,
        ):
            assert response.content_type == "text/event-stream"
            text = await response.text()
    lines = text.split("\n")
    names = [line.removeprefix("event: ") for line in lines if line.startswith("event: ")]
    block = ["content_block_start", "content_block_delta", "content_block_stop"]
    first_block = [block[0], "ping", *block[1:]]
    assert names == ["message_start", *first_block, *block, *block, "message_delta", "message_stop"]
    data = [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: ")]
    assert [one["type"] for one in data] == names
    assert [block.model_dump(exclude={"parsed_output"}) for block in final.content] == [
        block.model_dump() for block in whole.content
    ]
    assert (final.stop_reason, final.usage.output_tokens) == (
        whole.stop_reason,
        whole.usage.output_tokens,
    )
    assert not [word for word in ("token_ids", "logprob") if word in text]


async def test_a_sync_client_gets_the_same(rig: GatewayRig) -> None:
    import anthropic

    with ModelServer(in_turn("Yo")) as engine:
        await rig.register(engine.url)
        claim = await rig.claim()
        base_url = rig.attempt_url(claim).removesuffix("/v1")

        def streamed() -> str:
            with (
                anthropic.Anthropic(base_url=base_url, api_key=claim.key) as client,
                client.messages.stream(model="m", max_tokens=9, messages=HI) as stream,
            ):
                return "".join(stream.text_stream)

        assert await asyncio.to_thread(streamed) == "Yo"


# -- what is refused ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "part"),
    [
        ({"max_tokens": None}, "max_tokens"),
        ({"messages": "Hi"}, "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.role"),
        ({"messages": [{"role": "user"}]}, "messages.0.content"),
        (
            {"messages": [{"role": "user", "content": [{"type": "server_tool_use"}]}]},
            "server_tool_use",
        ),
        (
            {"messages": [{"role": "assistant", "content": [{"type": "tool_use", "id": "x"}]}]},
            "messages.0.content.0.input",
        ),
        ({"tools": [{"name": 5}]}, "tools.0"),
        ({"tool_choice": {"type": "some"}}, "tool_choice.type"),
        ({"mcp_servers": [{"type": "url"}]}, "mcp_servers"),
    ],
)
async def test_what_cant_be_done_is_refused_in_the_services_form(
    rig: GatewayRig, fields: dict[str, Any], part: str
) -> None:
    import anthropic

    body = {"model": "m", "max_tokens": 9, "messages": HI, **fields}
    async with agent(rig, await rig.claim()) as client:
        with pytest.raises(anthropic.BadRequestError) as failed:
            await client.post("/v1/messages", cast_to=object, body=body)
    error: Any = failed.value.body
    assert error["type"] == "error"
    assert error["error"]["type"] == "invalid_request_error"
    assert part in error["error"]["message"]


async def test_tokens_are_counted_as_a_call_would_have_them_and_nothing_is_recorded(
    rig: GatewayRig,
) -> None:
    tools: Any = [{"name": "f", "input_schema": {"type": "object"}}]
    with ModelServer() as engine:
        await rig.register(engine.url)
        claim = await rig.claim()
        async with agent(rig, claim) as client:
            asked: Any = {"model": "m", "messages": HI, "system": "Be.", "tools": tools}
            counted = await client.messages.count_tokens(**asked)
            assert await rig.calls(claim) == []
            answered = await client.messages.create(max_tokens=9, **asked)
    assert counted.input_tokens == answered.usage.input_tokens


async def test_an_engine_that_cannot_count_is_told(rig: GatewayRig) -> None:
    import anthropic

    await rig.register("http://127.0.0.1:9/v1")
    with ModelServer() as engine:
        await rig.register(engine.url)
        engine.fail_next(1, status=404)
        async with agent(rig, await rig.claim()) as client:
            with pytest.raises(anthropic.InternalServerError, match="can't count tokens"):
                await client.messages.count_tokens(model="m", messages=HI)


async def test_refusals_of_the_gateway_itself_are_in_the_services_form(rig: GatewayRig) -> None:
    import anthropic

    claim = await rig.claim()
    async with agent(rig, claim) as client:
        with pytest.raises(anthropic.AuthenticationError) as failed:
            await client.with_options(api_key="no-key").messages.create(
                model="m", max_tokens=9, messages=HI
            )
        with pytest.raises(anthropic.NotFoundError) as lost:
            await client.messages.batches.list()
        with pytest.raises(anthropic.NotFoundError) as unknown:  # no policy is registered
            await client.messages.create(model="m", max_tokens=9, messages=HI)
    bodies: list[Any] = [error.value.body for error in (failed, lost, unknown)]
    assert [(body["type"], body["error"]["type"]) for body in bodies] == [
        ("error", "authentication_error"),
        ("error", "not_found_error"),
        ("error", "not_found_error"),
    ]
    assert await rig.calls(claim) == []


async def test_the_runs_policies_are_its_models(rig: GatewayRig) -> None:
    import anthropic

    await rig.register("http://127.0.0.1:9/v1", name="a/b", replaces=("claude-x",))
    async with agent(rig, await rig.claim()) as client:
        assert [model.id async for model in client.models.list()] == ["a/b", "claude-x"]
        assert (await client.models.retrieve("a/b")).display_name == "a/b"
        with pytest.raises(anthropic.NotFoundError, match="'a/b'"):
            await client.models.retrieve("c")


async def test_an_engines_error_is_told_and_recorded(rig: GatewayRig) -> None:
    import anthropic

    with ModelServer(lambda _: Answer("too long", status=400)) as engine:
        await rig.register(engine.url)
        claim = await rig.claim()
        async with agent(rig, claim) as client:
            with pytest.raises(anthropic.BadRequestError, match="too long"):
                await client.messages.create(model="m", max_tokens=9, messages=HI)
    [call] = await rig.calls(claim)
    assert (call.status, call.http_status, call.dialect) == (
        CallStatus.FAILED,
        400,
        Dialect.ANTHROPIC,
    )
