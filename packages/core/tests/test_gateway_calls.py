"""What the gateway records of a call, and what the agent sees of it. The agent is the real SDK."""

import asyncio
import json
import struct
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import aiohttp
import openai
import pytest

from lightningrl.schema import CallEvent, CallStatus, Claim, Sampling
from lightningrl_testkit.gateway import GatewayRig, open_rig
from lightningrl_testkit.model_server import Answer, ModelServer, ToolCall, in_turn

HI = [{"role": "user", "content": "Hi"}]
TOOLS = [{"type": "function", "function": {"name": "f"}}]
HI_IDS = [257, 72, 105, 260, 258]  # user, "H", "i", end, assistant
YO_IDS = [89, 111, 260]  # "Y", "o", end
# logprob(id, at) = -(1 + (id + at) mod 64) / 64: 89 -> 25, 111+1 -> 48, 260+2 -> 6
YO_LOGPROBS = [-26 / 64, -49 / 64, -7 / 64]


def int32(*values: int) -> bytes:
    return struct.pack(f"<{len(values)}i", *values)


def float32(*values: float) -> bytes:
    return struct.pack(f"<{len(values)}f", *values)


class OwnClock:
    """A clock that the test turns."""

    def __init__(self) -> None:
        self.instant = datetime(2026, 1, 1, tzinfo=UTC)

    def now(self) -> datetime:
        return self.instant

    def monotonic(self) -> float:
        return self.instant.timestamp()


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[GatewayRig]:
    async with open_rig(tmp_path) as rig:
        yield rig


def agent(rig: GatewayRig, claim: Claim) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=rig.attempt_url(claim), api_key=claim.key)


async def post(rig: GatewayRig, claim: Claim, **fields: Any) -> dict[str, Any]:
    """One call over raw HTTP, as the agent gets it answered."""
    url = rig.attempt_url(claim) + "/chat/completions"
    headers = {"authorization": f"Bearer {claim.key}"}
    body = {"model": "m", "messages": HI, **fields}
    async with (
        aiohttp.ClientSession() as session,
        session.post(url, json=body, headers=headers) as response,
    ):
        assert response.status == 200, await response.text()
        return await response.json()


async def only_call(
    rig: GatewayRig, engine: ModelServer, sampling: Sampling | None = None, **fields: Any
) -> CallEvent:
    """The record of one call in a fresh rollout."""
    await rig.register(engine.url)
    claim = await rig.claim(sampling)
    await post(rig, claim, **fields)
    [call] = await rig.calls(claim)
    return call


# -- recording ---------------------------------------------------------------------------------


async def test_a_call_is_recorded_with_the_engines_own_bytes(rig: GatewayRig) -> None:
    with ModelServer(in_turn("Yo"), version=3) as engine:
        await rig.register(engine.url, version=3)
        claim = await rig.claim(Sampling())
        headers = {
            "x-lightningrl-step": "s-1",
            "x-lightningrl-agent": "J%C3%BCrgen",
            "x-lightningrl-state": "T%C3%BCr%203",
        }
        async with agent(rig, claim) as client:
            reply = await client.chat.completions.create(
                model="gpt-5", messages=HI, extra_headers=headers
            )
    assert (reply.id, reply.model) == ("s-1", "gpt-5")
    assert reply.choices[0].message.content == "Yo"
    [call] = await rig.calls(claim)
    assert reply._request_id == call.id
    assert (call.step_id, call.agent, call.state) == ("s-1", "Jürgen", "Tür 3")
    assert (call.policy, call.model, call.endpoint) == ("policy", "gpt-5", engine.url)
    assert call.prompt_ids == int32(*HI_IDS)
    [choice] = call.choices
    assert choice.token_ids == int32(*YO_IDS)
    assert choice.logprobs == float32(*YO_LOGPROBS)
    assert choice.untrainable is None
    assert json.loads(choice.message) == {"role": "assistant", "content": "Yo"}
    assert json.loads(call.request) == {"model": "gpt-5", "messages": HI}
    assert (call.prompt_tokens, call.completion_tokens) == (5, 3)
    assert (call.version_start, call.version_end) == (3, 3)
    assert (call.status, call.http_status, call.error) == (CallStatus.DELIVERED, 200, None)
    assert (call.upstream_retries, call.held_ms) == (0, 0.0)


async def test_a_call_is_dated_when_it_ended_by_the_time_it_took(tmp_path: Path) -> None:
    clock = OwnClock()
    with ModelServer() as engine:
        async with open_rig(tmp_path, clock=clock) as rig:
            await rig.register(engine.url)
            claim = await rig.claim()
            engine.block()
            answering = asyncio.create_task(post(rig, claim))
            await engine.arrived(1)
            clock.instant += timedelta(seconds=3)  # while the engine samples
            engine.unblock()
            await answering
            [call] = await rig.calls(claim)
    assert call.latency_ms == 3000.0
    assert call.at == clock.instant
    assert call.at - timedelta(milliseconds=call.latency_ms) == OwnClock().instant


async def test_the_next_prompt_of_a_conversation_continues_the_tokens_of_the_first(
    rig: GatewayRig,
) -> None:
    with ModelServer(in_turn("Yo", "Bye")) as engine:
        await rig.register(engine.url)
        claim = await rig.claim()
        first = await post(rig, claim)
        answered = [*HI, first["choices"][0]["message"], {"role": "user", "content": "?"}]
        await post(rig, claim, messages=answered)
    one, two = await rig.calls(claim)
    # prompt and answer, then user, "?", end, assistant
    assert two.prompt_ids == int32(*HI_IDS, *YO_IDS, 257, 63, 260, 258)
    assert two.prompt_ids.startswith(one.prompt_ids + one.choices[0].token_ids)
    assert one.step_id != two.step_id


async def test_every_choice_of_a_call_is_recorded(rig: GatewayRig) -> None:
    with ModelServer(in_turn("Yo")) as engine:
        call = await only_call(rig, engine, n=2)
    assert [choice.index for choice in call.choices] == [0, 1]
    assert [choice.token_ids for choice in call.choices] == [int32(*YO_IDS)] * 2
    assert call.completion_tokens == 6


async def test_an_answer_cut_at_max_tokens_is_trainable(rig: GatewayRig) -> None:
    with ModelServer(in_turn("Yo")) as engine:
        call = await only_call(rig, engine, max_tokens=1)
    [choice] = call.choices
    assert (choice.finish_reason, choice.token_ids) == ("length", int32(89))
    assert choice.untrainable is None


@pytest.mark.parametrize(("prompt", "status"), [(212, 200), (256, 400)])
async def test_a_limit_beyond_the_context_is_cut_to_what_it_still_holds(
    rig: GatewayRig, prompt: int, status: int
) -> None:
    """vLLM refuses what does not fit, and takes the room that is left where no limit is asked for."""

    def strict(request: dict[str, Any]) -> Answer:
        if prompt + request.get("max_tokens", 1) <= 256:
            return Answer("Yo")
        told = f"This model's maximum context length is 256 tokens; you have {prompt} input tokens."
        return Answer(told, status=400)

    with ModelServer(strict) as engine:
        await rig.register(engine.url)
        claim = await rig.claim(Sampling(max_tokens=128))
        async with aiohttp.ClientSession() as session:
            url = rig.attempt_url(claim) + "/chat/completions"
            headers = {"authorization": f"Bearer {claim.key}"}
            body = {"model": "m", "messages": HI}
            async with session.post(url, json=body, headers=headers) as response:
                assert response.status == status
        assert [one.body.get("max_tokens") for one in engine.arrivals] == [128, None]
    [call] = await rig.calls(claim)
    assert call.http_status == status


@pytest.mark.parametrize(
    ("route", "prompt"),
    [
        ("chat/completions", {"messages": HI}),
        ("responses", {"input": "Hi"}),
        ("messages", {"messages": HI, "max_tokens": 9}),
        ("completions", {"prompt": "Hi"}),
    ],
)
async def test_a_full_context_is_said_as_the_service_says_it_whatever_the_engine(
    rig: GatewayRig, route: str, prompt: dict[str, Any]
) -> None:
    told = "This model's maximum context length is 256 tokens; you have 300 input tokens."
    with ModelServer(lambda _: Answer(told, status=400)) as engine:
        await rig.register(engine.url)
        claim = await rig.claim()
        async with aiohttp.ClientSession() as session:
            headers = {"authorization": f"Bearer {claim.key}"}
            url = f"{rig.attempt_url(claim)}/{route}"
            async with session.post(url, json={"model": "m", **prompt}, headers=headers) as answer:
                error = (await answer.json())["error"]
    if route == "messages":
        assert error == {"type": "invalid_request_error", "message": f"prompt is too long: {told}"}
    else:
        assert (error["code"], error["message"]) == ("context_length_exceeded", told)


async def test_tool_calls_without_an_id_of_their_own_get_one(rig: GatewayRig) -> None:
    calls = tuple(ToolCall(name, f"f{n}", "{}") for n, name in enumerate(("", "a", "a", "b")))
    with ModelServer(lambda _: Answer(tool_calls=calls)) as engine:
        await rig.register(engine.url)
        claim = await rig.claim()
        replies = [await post(rig, claim) for _ in range(2)]
    messages = [reply["choices"][0]["message"] for reply in replies]
    told = [[one["id"] for one in message["tool_calls"]] for message in messages]
    assert [[ids[1], ids[3]] for ids in told] == [["a", "b"]] * 2  # those of the engine's stay
    made = [one for ids in told for one in (ids[0], ids[2])]
    assert len(set(made)) == 4
    assert all(made)
    recorded = [json.loads(one.choices[0].message or b"") for one in await rig.calls(claim)]
    assert recorded == messages


async def test_what_the_tool_parser_could_not_read_is_noted_and_trainable(
    rig: GatewayRig,
) -> None:
    broken = Answer("<tool_call>{", extra={"tool_parser_error": "no closing brace"})
    with ModelServer(in_turn(broken)) as engine:
        call = await only_call(rig, engine)
    assert call.error == "tool parser: no closing brace"
    assert call.choices[0].untrainable is None


# -- what the agent sees -----------------------------------------------------------------------


async def test_the_agent_sees_openais_fields_and_no_other(rig: GatewayRig) -> None:
    with ModelServer(in_turn(Answer("Yo", extra={"routed_experts": "AAAA"})), version=0) as engine:
        await rig.register(engine.url)
        reply = await post(rig, await rig.claim(), model="gpt-5")
    assert reply.pop("id").startswith("s-")
    assert reply == {
        "object": "chat.completion",
        "created": 1_700_000_000,
        "model": "gpt-5",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "Yo"},
                "finish_reason": "stop",
                "logprobs": None,
            }
        ],
        "usage": {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8},
        "system_fingerprint": None,
        "service_tier": None,
    }


async def test_an_agent_that_asks_for_log_probs_gets_them(rig: GatewayRig) -> None:
    with ModelServer(in_turn("Yo")) as engine:
        await rig.register(engine.url)
        reply = await post(rig, await rig.claim(), logprobs=True, return_token_ids=True)
    [choice] = reply["choices"]
    assert [one["logprob"] for one in choice["logprobs"]["content"]] == YO_LOGPROBS
    assert "token_ids" not in choice
    assert "prompt_token_ids" not in reply


# -- what the engine is told -------------------------------------------------------------------


async def test_the_engine_is_asked_for_tokens_under_the_policys_name(rig: GatewayRig) -> None:
    with ModelServer() as engine:
        await only_call(rig, engine, model="gpt-5", stream=False, user="u", top_logprobs=2)
        [arrival] = engine.arrivals
    assert arrival.body == {
        "model": "policy",
        "messages": HI,
        "user": "u",
        "logprobs": True,
        "return_token_ids": True,
    }


async def test_headers_of_the_agent_stay_here_except_the_trace(rig: GatewayRig) -> None:
    with ModelServer() as engine:
        await rig.register(engine.url)
        claim = await rig.claim()
        headers = {"x-lightningrl-step": "s-1", "x-secret": "x", "traceparent": "00-ab-cd-01"}
        async with agent(rig, claim) as client:
            await client.chat.completions.create(model="m", messages=HI, extra_headers=headers)
        told = engine.arrivals[0].headers
    [call] = await rig.calls(claim)
    assert told["traceparent"] == "00-ab-cd-01"
    assert told["x-request-id"] == call.id
    assert not {"authorization", "x-lightningrl-step", "x-secret"} & set(told)


async def test_the_rollouts_sampling_replaces_the_agents(rig: GatewayRig) -> None:
    sampling = Sampling(temperature=0.5, top_p=0.9, max_tokens=20)
    with ModelServer() as engine:
        call = await only_call(
            rig,
            engine,
            sampling,
            temperature=0.1,
            top_k=5,
            min_p=0.2,
            repetition_penalty=1.3,
            presence_penalty=1.0,
            seed=7,
            max_completion_tokens=12,
        )
        asked = engine.arrivals[0].body
    del asked["messages"]
    assert asked == {
        "model": "policy",
        "logprobs": True,
        "return_token_ids": True,
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": -1,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "max_tokens": 12,  # the lower of 20 and the agent's 12
    }
    assert call.sampling == Sampling(temperature=0.5, top_p=0.9, max_tokens=12)
    assert call.choices[0].untrainable is None


async def test_the_rollouts_max_tokens_and_seed_hold_where_the_agent_asks_for_more(
    rig: GatewayRig,
) -> None:
    with ModelServer() as engine:
        call = await only_call(rig, engine, Sampling(seed=1, max_tokens=20), max_tokens=99, seed=7)
        asked = engine.arrivals[0].body
    assert (asked["max_tokens"], asked["seed"]) == (20, 1)
    assert call.sampling == Sampling(seed=1, max_tokens=20)


# -- what must not be trained ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"temperature": 0.7, "top_p": 0.5}, "sampled otherwise (temperature=0.7, top_p=0.5)"),
        ({"top_k": 10}, "sampled otherwise (top_k=10)"),
        ({"temperature": 1, "top_p": 1.0, "top_k": -1}, None),
        ({"response_format": {"type": "json_object"}}, "sampled under a grammar (response_format)"),
        ({"response_format": {"type": "text"}}, None),
        ({"tools": TOOLS, "tool_choice": "required"}, "sampled under a grammar (tool_choice)"),
        (
            {"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "f"}}},
            "sampled under a grammar (tool_choice)",
        ),
        ({"tools": TOOLS, "tool_choice": "auto"}, None),
        ({"guided_regex": "a+"}, "sampled under a grammar (guided_regex)"),
        ({"logit_bias": {"5": -100}}, "sampled under a grammar (logit_bias)"),
        ({"logit_bias": {}}, None),
        ({"guided_json": {}}, "sampled under a grammar (guided_json)"),  # any JSON, but JSON
        ({"regex": "a+"}, "sampled under a grammar (regex)"),
        ({"ebnf": "root ::= 'a'"}, "sampled under a grammar (ebnf)"),
        ({"custom_logit_processor": "x"}, "sampled under a grammar (custom_logit_processor)"),
        ({"thinking_token_budget": 0}, "sampled under a grammar (thinking_token_budget)"),
        ({"thinking_token_budget": None, "min_tokens": 0, "ignore_eos": False}, None),
    ],
)
async def test_tokens_sampled_otherwise_are_recorded_with_the_reason(
    rig: GatewayRig, fields: dict[str, Any], reason: str | None
) -> None:
    with ModelServer() as engine:
        call = await only_call(rig, engine, **fields)
    assert call.choices[0].untrainable == reason


@pytest.mark.parametrize(
    ("extra", "reason"),
    [
        ({"token_ids": None}, "the engine gave no token ids"),
        ({"token_ids": [89, 111]}, "the engine gave 2 token ids and 3 log-probs"),
        ({"finish_reason": "abort"}, "the engine broke off the answer"),
        ({"weight_versions": [{"version": "4"}]}, "the engine reported weight version 4, not 0"),
        ({"weight_versions": [{"version": "0"}, {"version": 1}]},
         "the engine reported weight version 1, not 0"),
        ({"weight_versions": [{"version": "default"}]}, None),
    ],
)  # fmt: skip
async def test_what_the_engine_left_out_or_mixed_up_is_not_trained(
    rig: GatewayRig, extra: dict[str, Any], reason: str | None
) -> None:
    with ModelServer(in_turn(Answer("Yo", extra=extra))) as engine:
        call = await only_call(rig, engine, Sampling())
    assert call.choices[0].untrainable == reason


async def test_token_ids_that_are_no_integers_fail_the_call(rig: GatewayRig) -> None:
    with ModelServer(in_turn(Answer("Yo", extra={"token_ids": [89, 1.5, 260]}))) as engine:
        await rig.register(engine.url)
        claim = await rig.claim()
        async with agent(rig, claim) as client:
            with pytest.raises(openai.InternalServerError, match="can't be read"):
                await client.chat.completions.create(model="m", messages=HI)
    [call] = await rig.calls(claim)
    assert (call.status, call.http_status, call.choices) == (CallStatus.FAILED, 502, ())
