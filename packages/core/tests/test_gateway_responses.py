"""OpenAI's Responses at the gateway, spoken by the real SDK: items, conversations by id, streams."""

import asyncio
import json
import struct
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import openai
import pydantic
import pytest

from lightningrl.conversation.history import messages_of
from lightningrl.schema import AttemptId, CallEvent, CallStatus, Claim, Dialect, Sampling
from lightningrl_testkit.gateway import GatewayRig, open_rig
from lightningrl_testkit.model_server import (
    Answer,
    ModelServer,
    ToolCall,
    answer_ids,
    in_turn,
    prompt_ids,
)

YO_LOGPROBS = [-26 / 64, -49 / 64, -7 / 64]  # see test_gateway_calls
WEATHER_TOOL: dict[str, Any] = {
    "type": "function",
    "name": "weather",
    "description": "Tells the weather.",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    "strict": True,
}
LOOK = Answer(
    "Let me look.",
    tool_calls=(
        ToolCall("call-1", "weather", '{"city": "Berlin"}'),
        ToolCall("call-2", "weather", '{"city": "Bern"}'),
    ),
)
OUTPUTS: list[Any] = [
    {"type": "function_call_output", "call_id": "call-1", "output": "rain"},
    {"type": "function_call_output", "call_id": "call-2", "output": "sun"},
]


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[GatewayRig]:
    async with open_rig(tmp_path) as rig:
        yield rig


def agent(rig: GatewayRig, claim: Claim) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=rig.attempt_url(claim), api_key=claim.key, max_retries=0)


def int32(values: list[int]) -> bytes:
    return struct.pack(f"<{len(values)}i", *values)


async def assert_the_record_says_what_the_engine_was_asked(
    rig: GatewayRig, claim: Claim, engine: ModelServer
) -> None:
    calls = await rig.calls(claim)
    read = [messages_of(call, calls[:place]) for place, call in enumerate(calls)]
    assert read == [arrival.body["messages"] for arrival in engine.arrivals]


# -- one call ----------------------------------------------------------------------------------


async def test_a_response_is_a_call_with_its_tokens(rig: GatewayRig) -> None:
    with ModelServer(in_turn("Yo"), version=0) as engine:
        await rig.register(engine.url)
        claim = await rig.claim(Sampling())
        async with agent(rig, claim) as client:
            reply = await client.responses.create(
                model="gpt-5",
                input="Hi",
                instructions="Be short.",
                extra_headers={"x-lightningrl-step": "s-1"},
            )
    assert (reply.id, reply.model, reply.status) == ("resp_s-1", "gpt-5", "completed")
    assert reply.output_text == "Yo"
    assert [(item.id, item.type) for item in reply.output] == [("msg_s-1", "message")]
    assert reply.usage is not None
    messages = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "Hi"}]
    prompt = prompt_ids(messages)
    assert (reply.usage.input_tokens, reply.usage.output_tokens) == (len(prompt), 3)
    [call] = await rig.calls(claim)
    assert (call.dialect, call.status, call.step_id) == (
        Dialect.RESPONSES,
        CallStatus.DELIVERED,
        "s-1",
    )
    assert json.loads(call.request) == {
        "model": "gpt-5",
        "input": "Hi",
        "instructions": "Be short.",
    }
    assert call.prompt_ids == int32(prompt)
    [choice] = call.choices
    assert choice.token_ids == int32([89, 111, 260])
    assert choice.untrainable is None
    assert json.loads(choice.message) == {"role": "assistant", "content": "Yo"}
    assert messages_of(call) == messages


async def test_the_reply_says_what_was_asked_and_holds_no_token_id(rig: GatewayRig) -> None:
    with ModelServer(in_turn("Yo"), version=0) as engine:
        await rig.register(engine.url)
        claim = await rig.claim()
        async with agent(rig, claim) as client:
            raw = await client.responses.with_raw_response.create(
                model="m",
                input=[{"role": "user", "content": [{"type": "input_text", "text": "Hi"}]}],
                temperature=0.5,
                max_output_tokens=9,
                metadata={"a": "b"},
                tools=[WEATHER_TOOL],  # type: ignore[list-item]
                parallel_tool_calls=False,
                reasoning={"effort": "low"},
            )
    text = raw.text
    assert not [word for word in ("token_ids", "weight_versions", 'logprob"') if word in text]
    reply = raw.parse()
    assert (reply.temperature, reply.max_output_tokens) == (0.5, 9)
    assert (reply.metadata, reply.parallel_tool_calls) == ({"a": "b"}, False)
    assert [tool.type for tool in reply.tools] == ["function"]
    asked = engine.arrivals[0].body
    assert asked == {
        "model": "policy",
        "messages": [{"role": "user", "content": "Hi"}],
        "tools": [
            {
                "type": "function",
                "function": {
                    "name": "weather",
                    "description": "Tells the weather.",
                    "parameters": WEATHER_TOOL["parameters"],
                    "strict": True,
                },
            }
        ],
        "parallel_tool_calls": False,
        "reasoning_effort": "low",
        "temperature": 0.5,
        "max_tokens": 9,
        "logprobs": True,
        "return_token_ids": True,
    }
    [call] = await rig.calls(claim)
    assert call.choices[0].untrainable == "sampled otherwise (temperature=0.5)"


async def test_an_agent_that_includes_log_probs_gets_them(rig: GatewayRig) -> None:
    with ModelServer(in_turn("Yo")) as engine:
        await rig.register(engine.url)
        async with agent(rig, await rig.claim()) as client:
            reply = await client.responses.create(
                model="m", input="Hi", include=["message.output_text.logprobs"]
            )
    [message] = reply.output
    assert message.type == "message"
    [part] = message.content
    assert part.type == "output_text"
    assert part.logprobs
    assert [one.logprob for one in part.logprobs] == YO_LOGPROBS


async def test_an_answer_cut_at_max_output_tokens_is_incomplete(rig: GatewayRig) -> None:
    with ModelServer(in_turn("Yo")) as engine:
        await rig.register(engine.url)
        claim = await rig.claim()
        async with agent(rig, claim) as client:
            reply = await client.responses.create(model="m", input="Hi", max_output_tokens=1)
            async with client.responses.stream(
                model="m", input="Hi", max_output_tokens=1
            ) as stream:
                last = [event async for event in stream][-1]
    assert (reply.status, reply.output_text) == ("incomplete", "Y")
    assert reply.incomplete_details is not None
    assert reply.incomplete_details.reason == "max_output_tokens"
    assert last.type == "response.incomplete"
    calls = await rig.calls(claim)
    assert [call.choices[0].untrainable for call in calls] == [None, None]


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (Answer(""), [{"type": "output_text", "text": "", "annotations": [], "logprobs": []}]),
        (
            Answer(None, extra={"message": {"role": "assistant", "refusal": "No."}}),
            [{"type": "refusal", "refusal": "No."}],
        ),
    ],
)
async def test_empty_answers_and_refusals_are_what_they_are(
    rig: GatewayRig, answer: Answer, expected: list[dict[str, Any]]
) -> None:
    with ModelServer(in_turn(answer)) as engine:
        await rig.register(engine.url)
        async with agent(rig, await rig.claim()) as client:
            reply = await client.responses.create(model="m", input="Hi")
    [message] = reply.to_dict()["output"]  # type: ignore[misc]
    assert message["content"] == expected


async def test_structured_output_is_asked_for_and_not_trained(rig: GatewayRig) -> None:
    class Weather(pydantic.BaseModel):
        city: str

    with ModelServer(in_turn('{"city": "Bern"}')) as engine:
        await rig.register(engine.url)
        claim = await rig.claim(Sampling())
        async with agent(rig, claim) as client:
            reply = await client.responses.parse(model="m", input="Hi", text_format=Weather)
    assert reply.output_parsed == Weather(city="Bern")
    asked = engine.arrivals[0].body["response_format"]
    assert asked["type"] == "json_schema"
    assert asked["json_schema"]["name"] == "Weather"
    assert asked["json_schema"]["schema"]["required"] == ["city"]
    [call] = await rig.calls(claim)
    assert call.choices[0].untrainable == "sampled under a grammar (response_format)"


# -- conversations -----------------------------------------------------------------------------


async def test_tool_calls_and_their_outputs_continue_the_tokens_by_id_and_by_items(
    rig: GatewayRig,
) -> None:
    """The agent may refer to the former response, or send all items: the prompt is the same."""
    ask: list[Any] = [{"role": "user", "content": "Weather?"}]
    with ModelServer(in_turn(LOOK, "Wet.")) as engine:
        await rig.register(engine.url)
        claim = await rig.claim()
        async with agent(rig, claim) as client:
            first = await client.responses.create(model="m", input=ask, tools=[WEATHER_TOOL])  # type: ignore[list-item]
            by_id = await client.responses.create(
                model="m",
                input=OUTPUTS,
                previous_response_id=first.id,
                tools=[WEATHER_TOOL],  # type: ignore[list-item]
            )
            sent_back = [item.to_dict() for item in first.output]
            whole: list[Any] = [*ask, *sent_back, *OUTPUTS]
            by_items = await client.responses.create(model="m", input=whole, tools=[WEATHER_TOOL])  # type: ignore[list-item]
            reference: list[Any] = [
                *ask,
                *({"type": "item_reference", "id": item.id} for item in first.output),
                *OUTPUTS,
            ]
            by_reference = await client.responses.create(
                model="m",
                input=reference,
                tools=[WEATHER_TOOL],  # type: ignore[list-item]
            )
        await assert_the_record_says_what_the_engine_was_asked(rig, claim, engine)
    calls = [item for item in first.output if item.type == "function_call"]
    assert [(one.call_id, one.name, one.arguments) for one in calls] == [
        ("call-1", "weather", '{"city": "Berlin"}'),
        ("call-2", "weather", '{"city": "Bern"}'),
    ]
    assert first.output_text == "Let me look."
    assert [one.output_text for one in (by_id, by_items, by_reference)] == ["Wet."] * 3
    one, *others = await rig.calls(claim)
    assert len({other.prompt_ids for other in others}) == 1
    assert others[0].prompt_ids.startswith(one.prompt_ids + int32(answer_ids(LOOK)))


async def test_a_conversation_goes_on_by_id_after_the_gateway_was_started_anew(
    tmp_path: Path,
) -> None:
    with ModelServer(in_turn("one", "two", "three")) as engine:
        async with open_rig(tmp_path) as rig:
            await rig.register(engine.url)
            claim = await rig.claim()
            async with agent(rig, claim) as client:
                first = await client.responses.create(model="m", input="1", instructions="count")
                second = await client.responses.create(
                    model="m", input="2", previous_response_id=first.id
                )
        async with open_rig(tmp_path) as rig, agent(rig, claim) as client:
            third = await client.responses.create(
                model="m", input="3", previous_response_id=second.id
            )
            await assert_the_record_says_what_the_engine_was_asked(rig, claim, engine)
            recorded = [json.loads(call.request) for call in await rig.calls(claim)]
    assert third.output_text == "three"
    assert [message["content"] for message in engine.arrivals[2].body["messages"]] == [
        "1",
        "one",
        "2",
        "two",
        "3",
    ]  # fmt: skip - instructions are those of the request alone
    # What is stored of a turn is what the agent sent for it.
    assert [sorted(one) for one in recorded[1:]] == [["input", "model", "previous_response_id"]] * 2
    assert [one["input"] for one in recorded] == ["1", "2", "3"]


async def test_a_conversation_that_goes_on_by_id_is_read_from_the_store_once(
    rig: GatewayRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    calls = rig.store.calls

    async def counted(attempt_id: AttemptId, *, above: int = 0) -> list[CallEvent]:
        read.append(attempt_id)
        return await calls(attempt_id, above=above)

    monkeypatch.setattr(rig.store, "calls", counted)
    with ModelServer(in_turn("one", "two", "three", "four")) as engine:
        await rig.register(engine.url)
        claim = await rig.claim()
        async with agent(rig, claim) as client:
            last = await client.responses.create(model="m", input="1")
            for text in ("2", "3", "4"):
                last = await client.responses.create(
                    model="m", input=text, previous_response_id=last.id
                )
        await assert_the_record_says_what_the_engine_was_asked(rig, claim, engine)
    assert last.output_text == "four"
    assert read == [claim.attempt.id]


async def test_two_conversations_may_branch_from_one_response(rig: GatewayRig) -> None:
    with ModelServer(in_turn("one", "two")) as engine:
        await rig.register(engine.url)
        async with agent(rig, await rig.claim()) as client:
            first = await client.responses.create(model="m", input="1")
            for text in ("left", "right"):
                await client.responses.create(model="m", input=text, previous_response_id=first.id)
    assert [[m["content"] for m in one.body["messages"]] for one in engine.arrivals[1:]] == [
        ["1", "one", "left"],
        ["1", "one", "right"],
    ]


async def test_reasoning_is_an_item_and_goes_back_into_the_message_it_came_from(
    rig: GatewayRig,
) -> None:
    message = {"role": "assistant", "content": "Yo", "reasoning": "Greet."}
    with ModelServer(in_turn(Answer("Yo", extra={"message": message}))) as engine:
        await rig.register(engine.url)
        async with agent(rig, await rig.claim()) as client:
            first = await client.responses.create(model="m", input="Hi")
            items: list[Any] = [{"role": "user", "content": "Hi"}]
            items += [item.to_dict() for item in first.output]
            await client.responses.create(model="m", input=[*items, items[0]])
    assert [item.type for item in first.output] == ["reasoning", "message"]
    assert engine.arrivals[1].body["messages"][1] == message


async def test_a_response_of_another_attempt_is_not_found(rig: GatewayRig) -> None:
    with ModelServer() as engine:
        await rig.register(engine.url)
        async with agent(rig, await rig.claim()) as client:
            first = await client.responses.create(model="m", input="Hi")
        claim = await rig.claim()
        async with agent(rig, claim) as client:
            with pytest.raises(openai.BadRequestError) as failed:
                await client.responses.create(model="m", input="Hi", previous_response_id=first.id)
    assert failed.value.code == "previous_response_not_found"
    assert await rig.calls(claim) == []


async def test_a_response_that_was_not_to_be_stored_cant_be_referred_to(rig: GatewayRig) -> None:
    with ModelServer() as engine:
        await rig.register(engine.url)
        async with agent(rig, await rig.claim()) as client:
            first = await client.responses.create(model="m", input="Hi", store=False)
            with pytest.raises(openai.BadRequestError) as failed:
                await client.responses.create(model="m", input="Hi", previous_response_id=first.id)
            reference: Any = [{"type": "item_reference", "id": first.output[0].id}]
            with pytest.raises(openai.NotFoundError) as lost:
                await client.responses.create(model="m", input=reference)
    assert failed.value.code == "previous_response_not_found"
    assert lost.value.code == "item_not_found"
    assert first.store is False  # type: ignore[attr-defined]


# -- streams -----------------------------------------------------------------------------------


async def test_a_stream_is_the_services_events_in_order_and_adds_up(rig: GatewayRig) -> None:
    with ModelServer(in_turn(LOOK)) as engine:
        await rig.register(engine.url)
        async with agent(rig, await rig.claim()) as client:
            headers = {"x-lightningrl-step": "s-1"}
            whole = await client.responses.create(model="m", input="Hi", extra_headers=headers)
            async with client.responses.stream(
                model="m", input="Hi", extra_headers=headers
            ) as stream:
                events = [event async for event in stream]
                final = await stream.get_final_response()
    assert [event.type for event in events] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.delta",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        *[
            "response.output_item.added",
            "response.function_call_arguments.delta",
            "response.function_call_arguments.done",
            "response.output_item.done",
        ]
        * 2,
        "response.completed",
    ]
    assert [event.sequence_number for event in events] == list(range(17))
    assert final.output_text == whole.output_text == "Let me look."
    told = [
        (item.id, item.call_id, item.arguments)
        for item in whole.output
        if item.type == "function_call"
    ]
    assert told == [
        ("fc_s-1_0", "call-1", '{"city": "Berlin"}'),
        ("fc_s-1_1", "call-2", '{"city": "Bern"}'),
    ]
    assert told == [
        (item.id, item.call_id, item.arguments)
        for item in final.output
        if item.type == "function_call"
    ]
    assert final.usage == whole.usage
    assert all("stream" not in arrival.body for arrival in engine.arrivals)


async def test_a_sync_client_that_streams_gets_the_same(rig: GatewayRig) -> None:
    with ModelServer(in_turn("Yo")) as engine:
        await rig.register(engine.url)
        claim = await rig.claim()

        def streamed() -> str:
            with openai.OpenAI(base_url=rig.attempt_url(claim), api_key=claim.key) as client:
                events = client.responses.create(model="m", input="Hi", stream=True)
                return "".join(
                    event.delta for event in events if event.type == "response.output_text.delta"
                )

        assert await asyncio.to_thread(streamed) == "Yo"
    [call] = await rig.calls(claim)
    assert call.status is CallStatus.DELIVERED


# -- what is refused ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({"input": None}, "invalid_type", "input"),
        ({"input": 5}, "invalid_type", "input"),
        ({"input": ["x"]}, "invalid_type", "input[0]"),
        ({"input": [{"type": "web_search_call"}]}, "invalid_value", "input[0].type"),
        ({"input": [{"role": "robot", "content": "x"}]}, "invalid_value", "input[0].role"),
        ({"input": [{"role": "user"}]}, "missing_required_parameter", "input[0].content"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_video"}]}]},
            "invalid_value",
            "input[0].content[0].type",
        ),
        (
            {"input": [{"type": "function_call_output", "output": "x"}]},
            "missing_required_parameter",
            "input[0].call_id",
        ),
        ({"tools": [{"type": "custom"}]}, "missing_required_parameter", "tools[0].name"),
        ({"tool_choice": {"type": "web_search"}}, "unsupported_value", "tool_choice"),
        ({"tool_choice": "maybe"}, "invalid_value", "tool_choice"),
        ({"text": {"format": {"type": "xml"}}}, "invalid_value", "text.format.type"),
        ({"include": ["nothing"]}, "invalid_value", "include[0]"),
        ({"background": True}, "unsupported_parameter", "background"),
    ],
)
async def test_what_cant_be_done_is_refused_by_its_name(
    rig: GatewayRig, fields: dict[str, Any], code: str, param: str
) -> None:
    claim = await rig.claim()
    async with agent(rig, claim) as client:
        with pytest.raises(openai.BadRequestError) as failed:
            await client.post(
                "/responses", cast_to=object, body={"model": "m", "input": "Hi", **fields}
            )
    assert (failed.value.code, failed.value.param) == (code, param)
    assert failed.value.type == "invalid_request_error"


async def test_what_the_engine_refuses_is_told_and_recorded(rig: GatewayRig) -> None:
    with ModelServer(lambda _: Answer("too long", status=400)) as engine:
        await rig.register(engine.url)
        claim = await rig.claim()
        async with agent(rig, claim) as client:
            with pytest.raises(openai.BadRequestError, match="too long"):
                await client.responses.create(model="m", input="Hi", stream=True)
    [call] = await rig.calls(claim)
    assert (call.status, call.http_status, call.error) == (CallStatus.FAILED, 400, "too long")
    assert call.dialect is Dialect.RESPONSES


async def test_tokens_of_a_conversation_are_counted_as_a_call_would_have_them(
    rig: GatewayRig,
) -> None:
    with ModelServer() as engine:
        await rig.register(engine.url)
        claim = await rig.claim()
        async with agent(rig, claim) as client:
            first = await client.responses.create(model="m", input="Hi")
            asked: Any = {"model": "m", "input": "Go on", "previous_response_id": first.id}
            counted = await client.responses.input_tokens.count(**asked)
            answered = await client.responses.create(**asked)
    assert answered.usage is not None
    assert counted.input_tokens == answered.usage.input_tokens
    assert len(await rig.calls(claim)) == 2
