"""The engine's HTTP server, spoken to over real sockets with a model that learnt four answers."""

import asyncio
import copy
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import openai
import pytest
import torch
from learnt_engine import HERMES, config, learnt_engine, learnt_tokenizer
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from lightningrl.conversation.history import messages_of
from lightningrl.schema import Claim, Sampling
from lightningrl_testkit.engine_fields import ENGINE_FIELDS, Does, EngineField, is_refused
from lightningrl_testkit.gateway import GatewayRig, open_rig
from lightningrl_verl.engine import (
    Completion,
    EngineServer,
    TorchEngine,
    WeightSpan,
    serve_engine,
    tool_parser,
)
from lightningrl_verl.engine.chat import ReplyWriter, read_request
from lightningrl_verl.engine.prompts import PromptRenderer

CALC = {
    "type": "function",
    "function": {
        "name": "calc",
        "parameters": {"type": "object", "properties": {"expression": {"type": "string"}}},
    },
}


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return learnt_tokenizer()


@pytest.fixture(scope="module")
def engine(tokenizer: PreTrainedTokenizerFast) -> Iterator[TorchEngine]:
    with learnt_engine(tokenizer) as engine:
        yield engine


@pytest.fixture(scope="module", params=["compact", "hermes"])
def either_server(engine: TorchEngine, request: pytest.FixtureRequest) -> Iterator[EngineServer]:
    server = serve_engine(engine, model_name="tiny", parser=request.param)
    yield server
    server.close()


@pytest.fixture(scope="module")
def compact(engine: TorchEngine) -> Iterator[EngineServer]:
    server = serve_engine(engine, model_name="tiny", parser="compact")
    yield server
    server.close()


@pytest.fixture(scope="module")
def hermes(engine: TorchEngine) -> Iterator[EngineServer]:
    server = serve_engine(engine, model_name="tiny", parser="hermes")
    yield server
    server.close()


def user(text: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": text}]


async def post(
    server: EngineServer, *, path: str = "/v1/chat/completions", **fields: Any
) -> tuple[int, dict[str, Any]]:
    body = {"model": "tiny", "temperature": 0, **fields}
    async with (
        aiohttp.ClientSession() as session,
        session.post(server.url + path, json=body) as response,
    ):
        return response.status, await response.json()


async def get(server: EngineServer, path: str) -> tuple[int, Any]:
    async with aiohttp.ClientSession() as session, session.get(server.url + path) as response:
        text = await response.text()
        return response.status, json.loads(text) if text else None


async def test_compact_call_its_result_and_the_answer(
    compact: EngineServer, engine: TorchEngine, tokenizer: PreTrainedTokenizerFast
) -> None:
    wanted = {"tools": [CALC], "return_token_ids": True, "logprobs": True}
    status, first = await post(compact, messages=user("compact"), **wanted)
    assert status == 200
    choice = first["choices"][0]
    message = choice["message"]
    (call,) = message["tool_calls"]
    assert (message["role"], message["content"]) == ("assistant", None)
    assert (call["type"], call["function"]["name"]) == ("function", "calc")
    assert json.loads(call["function"]["arguments"]) == {"expression": "3+4"}
    assert call["id"].startswith("call_")
    assert choice["finish_reason"] == "tool_calls"
    assert "tool_parser_error" not in choice
    assert first["prompt_token_ids"] == tokenizer("<user>compact<bot>")["input_ids"]
    assert choice["token_ids"] == tokenizer("<call>3+4<end>")["input_ids"]
    assert choice["weight_versions"] == [{"version": 7, "start": 0, "end": 5}]
    assert first["usage"] == {"prompt_tokens": 9, "completion_tokens": 5, "total_tokens": 14}
    content = choice["logprobs"]["content"]
    assert [entry["token"] for entry in content] == ["<call>", "3", "+", "4", "<end>"]
    assert content[1]["bytes"] == [51]
    assert content[1]["top_logprobs"] == []
    expected = engine.score(first["prompt_token_ids"], choice["token_ids"])
    assert [entry["logprob"] for entry in content] == pytest.approx(expected, abs=1e-4)

    result = {"role": "tool", "tool_call_id": call["id"], "content": "7"}
    status, second = await post(compact, messages=[*user("compact"), message, result], **wanted)
    assert status == 200
    assert second["choices"][0]["message"] == {"role": "assistant", "content": "7"}
    assert second["choices"][0]["finish_reason"] == "stop"
    # The next prompt continues the former prompt and answer, token for token.
    former = first["prompt_token_ids"] + choice["token_ids"]
    assert second["prompt_token_ids"][: len(former)] == former


async def test_hermes_call(hermes: EngineServer) -> None:
    status, reply = await post(hermes, messages=user("hermes"), tools=[CALC])
    assert status == 200
    choice = reply["choices"][0]
    (call,) = choice["message"]["tool_calls"]
    assert call["function"] == {"name": "calc", "arguments": '{"expression": "3+4"}'}
    assert choice["finish_reason"] == "tool_calls"
    assert "token_ids" not in choice
    assert "prompt_token_ids" not in reply
    assert choice["logprobs"] is None


async def test_unreadable_call_is_content_with_the_parser_s_error(hermes: EngineServer) -> None:
    _, reply = await post(hermes, messages=user("broken"), tools=[CALC])
    choice = reply["choices"][0]
    assert choice["message"] == {"role": "assistant", "content": "<tool_call>{"}
    assert choice["finish_reason"] == "stop"
    assert choice["tool_parser_error"] == "unreadable <tool_call>: it has no </tool_call>"


async def test_call_cut_off_by_the_limit_is_no_call(compact: EngineServer) -> None:
    _, reply = await post(compact, messages=user("compact"), tools=[CALC], max_tokens=2)
    choice = reply["choices"][0]
    assert choice["message"] == {"role": "assistant", "content": "<call>3"}
    assert choice["finish_reason"] == "length"
    assert choice["tool_parser_error"] == "the tool call was cut off by the token limit"


async def test_tool_choice_none_never_calls(compact: EngineServer) -> None:
    _, reply = await post(
        compact,
        messages=user("compact"),
        tools=[CALC],
        tool_choice="none",
        parallel_tool_calls=True,
    )
    assert "tool_calls" not in reply["choices"][0]["message"]


async def test_several_choices_differ_and_a_seed_repeats_them(compact: EngineServer) -> None:
    fields = {"n": 4, "seed": 5, "temperature": 3.0, "max_tokens": 8, "return_token_ids": True}
    _, one = await post(compact, messages=user("free"), **fields)
    _, two = await post(compact, messages=user("free"), **fields)
    answers = [choice["token_ids"] for choice in one["choices"]]
    assert [choice["index"] for choice in one["choices"]] == [0, 1, 2, 3]
    assert answers == [choice["token_ids"] for choice in two["choices"]]
    assert len({tuple(answer) for answer in answers}) > 1
    assert one["usage"]["completion_tokens"] == sum(map(len, answers))


async def test_harmless_fields_and_text_parts_are_accepted(compact: EngineServer) -> None:
    parts = [{"type": "text", "text": "compact"}]
    status, reply = await post(
        compact,
        messages=[{"role": "user", "content": parts, "name": "ada"}],
        tools=[CALC],
        tool_choice="auto",
        user="ada",
        metadata={"a": "b"},
        store=True,
        cache_salt="a",
        priority=1,
        documents=[{"text": "a"}],
        unheard_of={"x": 1},
        stream=False,
        stream_options=None,
        response_format={"type": "text"},
        max_completion_tokens=20,
        logprobs=True,
        return_tokens_as_token_ids=True,
        top_p=1,
    )
    assert status == 200
    assert reply["choices"][0]["logprobs"]["content"][-1]["token"] == "token_id:5"


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"stream": True}, "stream", "gateway re-chunks"),
        ({"stop": [""]}, "stop", "without an empty text"),
        ({"logit_bias": {"1": 5}}, "logit_bias", "not supported"),
        ({"top_logprobs": 3}, "top_logprobs", "not supported"),
        ({"response_format": {"type": "structural_tag"}}, "response_format", "not supported"),
        ({"guided_json": {}}, "guided_json", "not supported"),
        ({"temperature": "hot"}, "temperature", "Expected `float | null`"),
        ({"temperature": -1}, "temperature", "0 or a finite number"),
        ({"n": 0}, "n", "at least 1"),
        ({"tool_choice": "required"}, "tool_choice", "only allowed when 'tools'"),
        (
            {"tool_choice": {"type": "x"}, "tools": [CALC]},
            "tool_choice",
            "'required' or a function",
        ),
        ({"tools": [{"type": "function"}]}, "tools", "function"),
        ({"messages": []}, "messages", "empty"),
        ({"messages": 3}, "messages", "Expected `array | null`"),
        ({"messages": [{"content": "x"}]}, "messages", "no `role`"),
        ({"messages": [{"role": "pope", "content": "x"}]}, "messages", "no role pope"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            "messages",
            "reads text alone",
        ),
        (
            {"messages": [{"role": "assistant", "tool_calls": [{"function": "f"}]}]},
            "messages",
            "has no `function`",
        ),
        ({"messages": user("x" * 200)}, "messages", "has 202 tokens, and max_model_len=128"),
    ],
)
async def test_refusals_name_the_field(
    either_server: EngineServer, fields: dict[str, Any], param: str, words: str
) -> None:
    status, reply = await post(either_server, **({"messages": user("hi")} | fields))
    assert status == 400
    assert reply["error"]["type"] == "invalid_request_error"
    assert reply["error"]["param"] == param
    assert words in reply["error"]["message"]


async def test_other_model_is_not_found(compact: EngineServer) -> None:
    status, reply = await post(compact, model="gpt", messages=user("hi"))
    assert (status, reply["error"]["code"]) == (404, "model_not_found")


async def test_body_that_is_no_json(compact: EngineServer) -> None:
    async with (
        aiohttp.ClientSession() as session,
        session.post(compact.url + "/v1/chat/completions", data=b"{") as response,
    ):
        assert response.status == 400


async def test_models_health_and_stats(compact: EngineServer) -> None:
    status, listed = await get(compact, "/v1/models")
    assert (status, [model["id"] for model in listed["data"]]) == (200, ["tiny"])
    assert await get(compact, "/health") == (200, None)
    status, stats = await get(compact, "/stats")
    assert (status, stats["version"], stats["slots"], stats["active"]) == (200, 7, 8, 0)


@pytest.fixture
def endless(tokenizer: PreTrainedTokenizerFast) -> Iterator[TorchEngine]:
    """One slot, and a greedy answer that never ends: the end token's logit is 0, another's above."""
    torch.manual_seed(0)
    shape = config(tokenizer)
    shape.tie_word_embeddings = True
    model = LlamaForCausalLM(shape)
    with torch.no_grad():
        model.get_input_embeddings().weight[tokenizer.eos_token_id] = 0
    engine = TorchEngine(model, tokenizer, slots=1, max_model_len=16384, threads=1)
    engine.start()
    yield engine
    engine.close()


async def wait_for(server: EngineServer, **expected: int) -> None:
    while True:
        _, stats = await get(server, "/stats")
        if expected.items() <= stats.items():
            return


async def test_client_that_hangs_up_frees_its_slots(endless: TorchEngine) -> None:
    server = serve_engine(endless, model_name="tiny", parser="none")
    try:
        abandoned = asyncio.create_task(post(server, messages=user("hi"), n=3))
        await wait_for(server, active=1, queued=2)
        abandoned.cancel()
        await wait_for(server, active=0, queued=0)
        status, reply = await post(server, messages=user("hi"), max_tokens=2)
        assert (status, reply["choices"][0]["finish_reason"]) == (200, "length")
        assert (await get(server, "/stats"))[1]["finished"] == 1
    finally:
        server.close()


async def test_dead_worker_answers_503(endless: TorchEngine) -> None:
    server = serve_engine(endless, model_name="tiny", parser="none")
    try:
        waiting = asyncio.create_task(post(server, messages=user("hi")))
        await wait_for(server, active=1)
        # Weights that the plan accepts but that cannot be copied.
        broken = {n: p.to("meta") for n, p in endless._model.model.named_parameters()}
        with pytest.raises(NotImplementedError):
            endless.swap_weights(broken.items(), version=1)
        for status, reply in [await waiting, await post(server, messages=user("hi"))]:
            assert (status, reply["error"]["code"]) == (503, "engine_unavailable")
            assert "create a new engine" in reply["error"]["message"]
        status, reply = await get(server, "/health")
        assert (status, reply["error"]["type"]) == (503, "server_error")
    finally:
        server.close()


async def test_two_servers_of_one_engine_have_ports_of_their_own(
    compact: EngineServer, hermes: EngineServer
) -> None:
    assert compact.url != hermes.url
    assert compact.url.startswith("http://127.0.0.1:")


# -- through the gateway, in every dialect -----------------------------------------------------


@pytest.fixture
async def rig(tmp_path: Path, compact: EngineServer) -> AsyncIterator[GatewayRig]:
    async with open_rig(tmp_path) as rig:
        # The engine's name for its model is the policy's, and 7 its weights' version.
        await rig.register(f"{compact.url}/v1", name="tiny", version=7)
        yield rig


async def assert_one_row(rig: GatewayRig, claim: Claim) -> None:
    """Two calls of one conversation, trainable, whose second continues the first token by token."""
    one, two = await rig.calls(claim)
    for call in (one, two):
        assert call.choices[0].untrainable is None
        assert len(call.choices[0].token_ids) == len(call.choices[0].logprobs) > 0
    assert two.prompt_ids.startswith(one.prompt_ids + one.choices[0].token_ids)


async def test_a_tool_loop_in_responses_continues_the_engines_tokens(rig: GatewayRig) -> None:
    tool: Any = {"type": "function", **CALC["function"], "strict": False}
    claim = await rig.claim(Sampling(temperature=0.0, max_tokens=20))
    async with openai.AsyncOpenAI(base_url=rig.attempt_url(claim), api_key=claim.key) as client:
        first = await client.responses.create(model="tiny", input="compact", tools=[tool])
        [call] = first.output
        assert call.type == "function_call"
        assert (call.name, call.arguments) == ("calc", '{"expression": "3+4"}')
        output: Any = {"type": "function_call_output", "call_id": call.call_id, "output": "7"}
        async with client.responses.stream(
            model="tiny", input=[output], previous_response_id=first.id, tools=[tool]
        ) as stream:
            second = await stream.get_final_response()
    assert second.output_text == "7"
    await assert_one_row(rig, claim)


def anthropic_client(rig: GatewayRig, claim: Claim) -> Any:
    from anthropic import AsyncAnthropic

    return AsyncAnthropic(base_url=rig.attempt_url(claim).removesuffix("/v1"), api_key=claim.key)


async def test_a_tool_loop_in_messages_continues_the_engines_tokens(rig: GatewayRig) -> None:
    function = CALC["function"]
    tool: Any = {"name": function["name"], "input_schema": function["parameters"]}
    claim = await rig.claim(Sampling(temperature=0.0, max_tokens=20))
    history: list[Any] = [{"role": "user", "content": "compact"}]
    async with anthropic_client(rig, claim) as client:
        first = await client.messages.create(
            model="tiny", max_tokens=20, messages=history, tools=[tool]
        )
        [use] = first.content
        assert use.type == "tool_use"
        assert (use.name, use.input) == ("calc", {"expression": "3+4"})
        result: Any = {"type": "tool_result", "tool_use_id": use.id, "content": "7"}
        history += [
            {"role": "assistant", "content": first.content},
            {"role": "user", "content": [result]},
        ]
        async with client.messages.stream(
            model="tiny", max_tokens=20, messages=history, tools=[tool]
        ) as stream:
            assert await stream.get_final_text() == "7"
    await assert_one_row(rig, claim)


async def test_a_completion_of_a_plain_text_has_the_same_tokens_as_the_rendered_chat(
    rig: GatewayRig,
) -> None:
    claim = await rig.claim(Sampling(temperature=0.0, max_tokens=20))
    async with openai.AsyncOpenAI(base_url=rig.attempt_url(claim), api_key=claim.key) as client:
        said: Any = [{"role": "user", "content": "compact"}]
        await client.chat.completions.create(model="tiny", messages=said)
        plain = await client.completions.create(model="tiny", prompt="<user>compact<bot>")
        with pytest.raises(openai.BadRequestError, match="no tokens"):
            await client.completions.create(model="tiny", prompt=[10_000])
    assert plain.choices[0].text == "<call>3+4"
    chat, text, _ = await rig.calls(claim)
    assert text.prompt_ids == chat.prompt_ids
    assert text.choices[0].token_ids == chat.choices[0].token_ids
    assert text.choices[0].untrainable is None


async def test_what_the_engine_cant_do_is_refused_in_the_dialects_form(rig: GatewayRig) -> None:
    import anthropic

    claim = await rig.claim()
    said: Any = [{"role": "user", "content": "compact"}]
    async with openai.AsyncOpenAI(base_url=rig.attempt_url(claim), api_key=claim.key) as client:
        with pytest.raises(openai.BadRequestError, match="top_logprobs"):
            await client.responses.create(model="tiny", input="compact", top_logprobs=3)
    async with anthropic_client(rig, claim) as client:
        with pytest.raises(anthropic.BadRequestError, match="min_p") as failed:
            await client.messages.create(
                model="tiny", max_tokens=9, messages=said, extra_body={"min_p": 0.5}
            )
    assert failed.value.body["type"] == "error"  # type: ignore[index]
    assert [call.http_status for call in await rig.calls(claim)] == [400, 400]


# -- what vLLM does, too -------------------------------------------------------------------------


async def test_a_stop_text_cuts_the_answer_and_no_token(hermes: EngineServer) -> None:
    """The answer is `<tool_call>\\n{"name": "calc", "arguments": ...`, one token a character."""
    fields: dict[str, Any] = {"messages": user("hermes"), "return_token_ids": True}
    _, reply = await post(hermes, stop=["never", ', "arg', "calc"], **fields)
    [choice] = reply["choices"]
    assert choice["message"]["content"] == '<tool_call>\n{"name": "'
    assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", "calc")
    assert len(choice["token_ids"]) == len('<tool_call>\n{"name": "calc')
    _, kept = await post(hermes, stop="calc", include_stop_str_in_output=True, **fields)
    assert kept["choices"][0]["message"]["content"] == '<tool_call>\n{"name": "calc'
    _, whole = await post(hermes, stop="never", **fields)
    assert (whole["choices"][0]["message"]["content"], whole["choices"][0]["stop_reason"]) == (
        HERMES,
        None,
    )


async def test_a_stop_text_ends_a_plain_completion(compact: EngineServer) -> None:
    _, reply = await post(
        compact, path="/v1/completions", prompt="<user>compact<bot>", stop="+", max_tokens=9
    )
    [choice] = reply["choices"]
    assert (choice["text"], choice["stop_reason"]) == ("<call>3", "+")


async def test_a_forced_call_and_a_schema_are_asked_for_in_words(hermes: EngineServer) -> None:
    forced: Any = {"type": "function", "function": {"name": "calc"}}
    fields: dict[str, Any] = {"messages": user("hermes"), "tools": [CALC]}
    for choice in ("required", forced):
        status, reply = await post(hermes, tool_choice=choice, **fields)
        assert (status, reply["choices"][0]["finish_reason"]) == (200, "tool_calls")
    schema = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "object"}}}
    status, told = await post(hermes, messages=user("hi"), response_format=schema)
    assert status == 400  # this template has no place for instructions, so it says so
    assert "no role system" in told["error"]["message"]


@pytest.fixture(scope="module")
def plain(engine: TorchEngine) -> Iterator[EngineServer]:
    """The same model, with a template that has a place for instructions."""
    tokenizer = copy.deepcopy(engine.tokenizer)
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}<bot>"
    seen = copy.copy(engine)
    seen.tokenizer = tokenizer
    server = serve_engine(seen, model_name="tiny", parser="none")
    yield server
    server.close()


@pytest.mark.parametrize(
    ("fields", "prompt"),
    [
        ({}, "<user><bot>"),
        ({"reasoning_effort": "3"}, "<user>3<bot>"),
        ({"documents": [{"text": "7"}]}, "<user>7<bot>"),
        (
            {"reasoning_effort": "3", "chat_template_kwargs": {"reasoning_effort": "4"}},
            "<user>4<bot>",
        ),
    ],
)
def test_fields_that_are_variables_reach_the_template(
    tokenizer: PreTrainedTokenizerFast, fields: dict[str, Any], prompt: str
) -> None:
    reads = copy.deepcopy(tokenizer)
    reads.chat_template = "<user>{{ reasoning_effort }}{% for one in documents or [] %}{{ one.text }}{% endfor %}<bot>"
    renderer = PromptRenderer(reads)
    for given, text in (({}, "<user><bot>"), (fields, prompt)):  # the second is no former one
        body = json.dumps({"model": "m", "messages": user("a"), **given}).encode()
        ids, _ = renderer.render(read_request(body))
        assert ids == tokenizer(text)["input_ids"]


@pytest.mark.parametrize("row", ENGINE_FIELDS, ids=lambda row: row.name)
def test_the_table_says_which_fields_are_refused(plain: EngineServer, row: EngineField) -> None:
    assert is_refused(plain.url, row, "tiny") == (row.embedded is Does.REFUSED)


def test_of_several_calls_the_first_is_one_where_one_is_asked_for() -> None:
    text = f"{HERMES}\n{HERMES}"
    completion = Completion((1,), (-1.0,), "stop", None, (WeightSpan(0, 0, 1),), 0.0, 0.0)
    writer = ReplyWriter("m", tool_parser("hermes"), lambda ids: text, lambda one: "", frozenset())
    for alone, calls in ((False, 1), (True, 2), (None, 2)):
        body = json.dumps({"model": "m", "messages": [], "parallel_tool_calls": alone}).encode()
        reply = writer.reply(read_request(body), [1], [CALC], [completion])
        assert len(reply["choices"][0]["message"]["tool_calls"]) == calls


# -- what the policy wrote comes back in the next turn -------------------------------------------

WRITTEN = [
    '{"expression": NaN}',
    '{"expression": 1e999}',
    '{"expression": "\\ud83d"}',
    '{"expression": ',
    '["3+4"]',
    '"3+4"',
    "5",
    "{'expression': 1}",
    '{"expression": "1"} and more',
    "",
    "[" * 3000,
]


@pytest.mark.parametrize("arguments", WRITTEN)
async def test_what_the_policy_wrote_is_never_refused(rig: GatewayRig, arguments: str) -> None:
    claim = await rig.claim(Sampling(temperature=0.0, max_tokens=3))
    call: Any = {"id": "c", "type": "function"}
    call["function"] = {"name": "calc", "arguments": arguments}
    history: Any = [
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c", "content": "7"},
    ]
    items: Any = [
        {"type": "function_call", "call_id": "c", "name": "calc", "arguments": arguments},
        {"type": "function_call_output", "call_id": "c", "output": "7"},
    ]
    used = {"type": "tool_use", "id": "c", "name": "calc", "input": {"INVALID_JSON": arguments}}
    blocks: Any = [
        {"role": "assistant", "content": [used]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c", "content": "7"}]},
    ]
    async with openai.AsyncOpenAI(base_url=rig.attempt_url(claim), api_key=claim.key) as client:
        await client.chat.completions.create(model="tiny", messages=history)
        await client.responses.create(model="tiny", input=items)
    async with anthropic_client(rig, claim) as client:
        await client.messages.create(model="tiny", max_tokens=9, messages=blocks)
    prompts = [one.prompt_ids for one in await rig.calls(claim)]
    assert prompts[0] == prompts[1] == prompts[2]


async def test_half_a_character_in_a_request_is_the_replacement_character(rig: GatewayRig) -> None:
    claim = await rig.claim(Sampling(temperature=0.0, max_tokens=3))
    body = rb'{"model": "tiny", "messages": [{"role": "user", "content": "\ud83d a \\ud83d"}]}'
    headers = {"authorization": f"Bearer {claim.key}"}
    url = rig.attempt_url(claim) + "/chat/completions"
    async with (
        aiohttp.ClientSession(headers=headers) as session,
        session.post(url, data=body) as response,
    ):
        assert response.status == 200, await response.text()
    [call] = await rig.calls(claim)
    assert messages_of(call)[0]["content"] == "\ufffd a \\ud83d"


OBJECTS_ALONE = """
{%- for m in messages -%}
{%- for c in m.tool_calls or [] -%}{%- for k, v in c.function.arguments | items -%}
{{ k }}={{ v }};{%- endfor -%}{%- endfor -%}{{ m.content }}
{%- endfor -%}
"""


def test_a_template_that_reads_objects_alone_gets_one(tokenizer: PreTrainedTokenizerFast) -> None:
    strict = copy.deepcopy(tokenizer)
    strict.chat_template = OBJECTS_ALONE
    function = {"name": "calc", "arguments": "[1"}
    said = {"role": "assistant", "tool_calls": [{"function": function}]}
    body = json.dumps({"model": "m", "messages": [said]}).encode()
    ids, _ = PromptRenderer(strict).render(read_request(body))
    assert strict.decode(ids) == "arguments=[1;"
