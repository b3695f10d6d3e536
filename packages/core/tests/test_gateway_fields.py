"""Every row of the field tables does what `docs/reference/gateway-fields.md` says: one request each."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
import pytest

from lightningrl.conversation import anthropic
from lightningrl.conversation.engine_fields import IN_EVERY_DIALECT
from lightningrl.conversation.tools.anthropic import built_in
from lightningrl.gateway.dialects import FIELDS
from lightningrl.gateway.dialects.engine_request import CONSTRAINTS
from lightningrl.gateway.dialects.fields import Field, Handling
from lightningrl_testkit.gateway import GatewayRig, open_rig
from lightningrl_testkit.model_server import ModelServer

HI: list[Any] = [{"role": "user", "content": "Hi"}]
SCHEMA: dict[str, Any] = {"type": "object", "properties": {}}
CHAT_TOOL: dict[str, Any] = {"type": "function", "function": {"name": "f", "parameters": SCHEMA}}
F: dict[str, Any] = {"type": "function", "name": "f", "parameters": SCHEMA}
CHOOSE_F = {"type": "function", "function": {"name": "f"}}
JSON_FORMAT = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}
G = {**CHAT_TOOL, "function": {"name": "g"}}
TEXT = {"input": {"type": "string", "description": "The whole input."}}
FREEFORM = {"type": "object", "properties": TEXT, "required": ["input"]}
CUSTOM_AS_TOOL = {"type": "function", "function": {"name": "c", "parameters": FREEFORM}}
"""A custom tool `c` as engines are given it."""
ALLOWED = {"type": "allowed_tools", "mode": "auto"}
THINKS = {"chat_template_kwargs": {"enable_thinking": True}}
OF_ENGINES = (
    *(name for name in CONSTRAINTS if name not in ("response_format", "tool_choice", "logit_bias")),
    "stop_token_ids",
    "include_stop_str_in_output",
    "skip_special_tokens",
    "spaces_between_special_tokens",
    "length_penalty",
    "truncate_prompt_tokens",
    "add_special_tokens",
    "prompt_logprobs",
    "return_tokens_as_token_ids",
    "priority",
    "request_id",
    "cache_salt",
    "kv_transfer_params",
    "vllm_xargs",
)
OF_CHAT = (
    "add_generation_prompt",
    "continue_final_message",
    "chat_template",
    "documents",
    "include_reasoning",
    "separate_reasoning",
    "mm_processor_kwargs",
    "echo",
)

BASE: dict[str, dict[str, Any]] = {
    "chat/completions": {"model": "m", "messages": HI},
    "responses": {"model": "m", "input": "Hi"},
    "messages": {"model": "m", "messages": HI, "max_tokens": 99},
    "completions": {"model": "m", "prompt": "Hi"},
}


class Example(NamedTuple):
    """A request for a row, put over the dialect's base, and what the engine is then asked."""

    fields: dict[str, Any]
    engine: dict[str, Any] = {}  # noqa: RUF012 - never changed


def same(**fields: Any) -> Example:
    """The engine is asked for the same."""
    return Example(fields, fields)


def only(**fields: Any) -> Example:
    """The engine sees nothing of it, or the request is refused."""
    return Example(fields)


SAMPLING = {
    "temperature": same(temperature=0.5),
    "top_p": same(top_p=0.5),
    "presence_penalty": same(presence_penalty=0.5),
    "frequency_penalty": same(frequency_penalty=0.5),
    "seed": same(seed=7),
}

EXAMPLES: dict[str, dict[str, Example]] = {
    "chat/completions": {
        **SAMPLING,
        "model": Example({"model": "x"}, {"model": "policy"}),
        "messages": same(messages=[*HI, *HI]),
        "messages=content parts of unknown types": only(
            messages=[{"role": "user", "content": [{"type": "video_game"}]}]
        ),
        "tools": same(tools=[CHAT_TOOL]),
        "tools=custom": Example(
            {"tools": [{"type": "custom", "custom": {"name": "c"}}]}, {"tools": [CUSTOM_AS_TOOL]}
        ),
        "tools=other tool types": only(tools=[{"type": "web_search"}]),
        "tool_choice=allowed_tools": Example(
            {
                "tools": [CHAT_TOOL, G],
                "tool_choice": {
                    "type": "allowed_tools",
                    "allowed_tools": {"mode": "auto", "tools": [CHOOSE_F]},
                },
            },
            {"tools": [CHAT_TOOL], "tool_choice": "auto"},
        ),
        "tool_choice": same(tools=[CHAT_TOOL], tool_choice="required"),
        "parallel_tool_calls": same(tools=[CHAT_TOOL], parallel_tool_calls=False),
        "response_format": same(response_format=JSON_FORMAT),
        "max_tokens": same(max_tokens=2),
        "max_completion_tokens": Example({"max_completion_tokens": 2}, {"max_tokens": 2}),
        "top_k": same(top_k=3),
        "min_p": same(min_p=0.1),
        "repetition_penalty": same(repetition_penalty=1.1),
        "n": same(n=2),
        "stop": same(stop=["x"]),
        "logit_bias": same(logit_bias={"5": 1}),
        "logprobs": same(logprobs=True),
        "top_logprobs": same(logprobs=True, top_logprobs=2),
        "reasoning_effort": same(reasoning_effort="low"),
        "chat_template_kwargs": same(chat_template_kwargs={"a": 1}),
        "user": same(user="u"),
        "stream": only(stream=True),
        "stream_options": only(stream=True, stream_options={"include_usage": True}),
        "return_token_ids": only(return_token_ids=True),
        "store": only(store=True),
        "metadata": only(metadata={"a": "b"}),
        "prediction": only(prediction={"type": "content", "content": "x"}),
        "verbosity": only(verbosity="low"),
        "service_tier": only(service_tier="auto"),
        "safety_identifier": only(safety_identifier="x"),
        "prompt_cache_key": only(prompt_cache_key="x"),
        "prompt_cache_retention": only(prompt_cache_retention="24h"),
        "prompt_cache_options": only(prompt_cache_options={}),
        "functions": only(functions=[{"name": "f"}]),
        "function_call": only(function_call="auto"),
        "audio": only(audio={"voice": "x"}),
        "modalities": only(modalities=["text", "audio"]),
        "moderation": only(moderation={}),
        "web_search_options": only(web_search_options={}),
        **{name: same(**{name: 1}) for name in (*OF_ENGINES, *OF_CHAT)},
        "any other field": only(unheard_of=1),
    },
    "responses": {
        **{name: same(**{name: 1}) for name in IN_EVERY_DIALECT if name != "chat_template_kwargs"},
        "chat_template_kwargs": same(chat_template_kwargs={"enable_thinking": False}),
        "any other field": only(unheard_of=1),
        "model": Example({"model": "x"}, {"model": "policy"}),
        "input": Example({"input": [*HI, *HI]}, {"messages": [*HI, *HI]}),
        "input=item_reference": Example(
            {"input": [*HI, {"type": "item_reference", "id": "msg_s-0"}]},
            {"messages": [*HI, {"role": "assistant", "content": "Hi"}]},
        ),
        "input=other item types": only(input=[{"type": "web_search_call"}]),
        "input=unknown keys of an item or part": Example(
            {"input": [{**HI[0], "mood": "x"}]}, {"messages": HI}
        ),
        "instructions": Example(
            {"instructions": "Be."}, {"messages": [{"role": "system", "content": "Be."}, *HI]}
        ),
        "previous_response_id": Example(
            {"previous_response_id": "resp_s-0"},
            {"messages": [*HI, {"role": "assistant", "content": "Hi"}, *HI]},
        ),
        "previous_response_id=an unknown id": only(previous_response_id="resp_x"),
        "tools=function": Example({"tools": [F]}, {"tools": [CHAT_TOOL]}),
        "tools=other tool types": only(tools=[{"type": "file_search"}]),
        "tools=custom, namespace, local_shell, shell, apply_patch, tool_search of the client": Example(
            {"tools": [{"type": "custom", "name": "c"}]}, {"tools": [CUSTOM_AS_TOOL]}
        ),
        "tool_choice=allowed_tools": Example(
            {
                "tools": [F, {**F, "name": "g"}],
                "tool_choice": {**ALLOWED, "tools": [{"type": "function", "name": "f"}]},
            },
            {"tools": [CHAT_TOOL], "tool_choice": "auto"},
        ),
        "tool_choice=auto, none, required, a tool": Example(
            {"tools": [F], "tool_choice": {"type": "function", "name": "f"}},
            {"tool_choice": CHOOSE_F},
        ),
        "tool_choice=other tools": only(tool_choice={"type": "file_search"}),
        "parallel_tool_calls": Example(
            {"tools": [F], "parallel_tool_calls": False}, {"parallel_tool_calls": False}
        ),
        "text.format": Example(
            {"text": {"format": {"type": "json_schema", "name": "x", "schema": SCHEMA}}},
            {"response_format": JSON_FORMAT},
        ),
        "text.verbosity": only(text={"verbosity": "low"}),
        "reasoning.effort": Example({"reasoning": {"effort": "low"}}, {"reasoning_effort": "low"}),
        "reasoning.generate_summary": only(reasoning={"generate_summary": "auto"}),
        "tools=unknown keys of a definition": Example(
            {"tools": [{**F, "defer_loading": True}]}, {"tools": [CHAT_TOOL]}
        ),
        "client_metadata": only(client_metadata={"a": "b"}),
        "generate=true": only(generate=True),
        "generate=false": only(generate=False),
        "reasoning.summary": only(reasoning={"summary": "auto"}),
        "temperature": same(temperature=0.5),
        "top_p": same(top_p=0.5),
        "max_output_tokens": Example({"max_output_tokens": 2}, {"max_tokens": 2}),
        "top_logprobs": Example(
            {"top_logprobs": 2, "include": ["message.output_text.logprobs"]}, {"top_logprobs": 2}
        ),
        "include=message.output_text.logprobs": only(include=["message.output_text.logprobs"]),
        "include=other known values": only(include=["reasoning.encrypted_content"]),
        "include=unknown values": only(include=["x"]),
        "stream": only(stream=True),
        "stream_options": only(stream=True, stream_options={"include_obfuscation": True}),
        "store": only(store=False),
        "metadata": only(metadata={"a": "b"}),
        "truncation": only(truncation="auto"),
        "max_tool_calls": only(max_tool_calls=3),
        "service_tier": only(service_tier="auto"),
        "user": only(user="u"),
        "safety_identifier": only(safety_identifier="x"),
        "prompt_cache_key": only(prompt_cache_key="x"),
        "prompt_cache_retention": only(prompt_cache_retention="24h"),
        "prompt_cache_options": only(prompt_cache_options={}),
        "background=false": only(background=False),
        "background=true": only(background=True),
        "background_options": only(background_options={}),
        "conversation": only(conversation="conv_1"),
        "prompt": only(prompt={"id": "pmpt_1"}),
        "context_management": only(context_management=[{"type": "compaction"}]),
        "image": only(image={}),
        "moderation": only(moderation={}),
        "access_programs": only(access_programs={}),
    },
    "messages": {
        "model": Example({"model": "x"}, {"model": "policy"}),
        "messages": same(messages=[*HI, {"role": "assistant", "content": "a"}, *HI]),
        "messages=other blocks": only(
            messages=[{"role": "user", "content": [{"type": "server_tool_use"}]}]
        ),
        "messages=unknown keys of a message or block": Example(
            {
                "messages": [
                    {"role": "user", "content": [{"type": "text", "text": "Hi", "mood": 1}]}
                ]
            },
            {"messages": HI},
        ),
        "messages=an assistant's at the end": only(
            messages=[*HI, {"role": "assistant", "content": "I"}]
        ),
        "system": Example(
            {"system": [{"type": "text", "text": "Be."}]},
            {"messages": [{"role": "system", "content": "Be."}, *HI]},
        ),
        "max_tokens": same(max_tokens=2),
        "tools=custom": Example(
            {"tools": [{"name": "f", "input_schema": SCHEMA}]}, {"tools": [CHAT_TOOL]}
        ),
        "tools=other tool types": only(
            tools=[{"type": "web_search_20250305", "name": "web_search"}]
        ),
        "tools=bash, text_editor, memory, computer of a known date": Example(
            {"tools": [{"type": "bash_20250124", "name": "bash"}]},
            {"tools": [built_in({"type": "bash_20250124"})]},
        ),
        "tool_choice": Example(
            {
                "tools": [{"name": "f", "input_schema": SCHEMA}],
                "tool_choice": {"type": "tool", "name": "f"},
            },
            {"tool_choice": CHOOSE_F},
        ),
        "temperature": same(temperature=0.5),
        "top_p": same(top_p=0.5),
        "top_k": same(top_k=3),
        "stop_sequences": Example({"stop_sequences": ["x"]}, {"stop": ["x"]}),
        "output_config.format": Example(
            {"output_config": {"format": {"type": "json_schema", "schema": SCHEMA}}},
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "output", "schema": SCHEMA},
                }
            },
        ),
        "output_config.effort": Example(
            {"output_config": {"effort": "low"}}, {"reasoning_effort": "low"}
        ),
        "output_format": Example(
            {"output_format": {"type": "json_schema", "schema": SCHEMA}},
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "output", "schema": SCHEMA},
                }
            },
        ),
        "thinking.type": Example({"thinking": {"type": "adaptive"}}, THINKS),
        "thinking.budget_tokens": Example(
            {"thinking": {"type": "enabled", "budget_tokens": 1024}}, THINKS
        ),
        "thinking.display": Example(
            {"thinking": {"type": "enabled", "display": "omitted"}}, THINKS
        ),
        "tools=eager_input_streaming": Example(
            {"tools": [{"name": "f", "input_schema": SCHEMA, "eager_input_streaming": True}]},
            {"tools": [CHAT_TOOL]},
        ),
        "tools=unknown keys of a definition": Example(
            {"tools": [{"name": "f", "input_schema": SCHEMA, "defer_loading": True}]},
            {"tools": [CHAT_TOOL]},
        ),
        "betas": only(betas=["x"]),
        "anthropic_beta": only(anthropic_beta=["x"]),
        "fallbacks": only(fallbacks=[{"model": "x"}]),
        "thread": only(thread={"type": "create"}),
        **{
            name: same(**{name: 1})
            for name in IN_EVERY_DIALECT
            if name not in ("top_k", "chat_template_kwargs")
        },
        "chat_template_kwargs": same(chat_template_kwargs={"enable_thinking": False}),
        "any other field": only(unheard_of=1),
        "stream": only(stream=True),
        "metadata": only(metadata={"user_id": "u"}),
        "service_tier": only(service_tier="auto"),
        "cache_control": only(cache_control={"type": "ephemeral"}),
        "inference_geo": only(inference_geo="eu"),
        "speed": only(speed="fast"),
        "diagnostics": only(diagnostics={}),
        "user_profile_id": only(user_profile_id="u"),
        "workspace_id": only(workspace_id="w"),
        "container": only(container="c"),
        "context_management": only(context_management={"edits": [{"type": "compact_20260112"}]}),
        "mcp_servers": only(mcp_servers=[{}]),
    },
    "completions": {
        **SAMPLING,
        "model": Example({"model": "x"}, {"model": "policy"}),
        "prompt": same(prompt=[72, 105]),
        "prompt=several": only(prompt=["a", "b"]),
        "max_tokens": same(max_tokens=2),
        "n": same(n=2),
        "stop": same(stop=["x"]),
        "logprobs": same(logprobs=2),
        "logit_bias": same(logit_bias={"5": 1}),
        "response_format": same(response_format=JSON_FORMAT),
        "user": same(user="u"),
        "stream": only(stream=True),
        "stream_options": only(stream=True, stream_options={"include_usage": True}),
        "return_token_ids": only(return_token_ids=True),
        "echo=true": only(echo=True),
        "best_of=more than `n`": only(best_of=2),
        "suffix": only(suffix="x"),
        **{
            name: same(**{name: 1})
            for name in ("top_k", "min_p", "repetition_penalty", *OF_ENGINES)
        },
        "any other field": only(unheard_of=1),
    },
}


def test_every_row_has_its_example_and_every_example_its_row() -> None:
    for route, table in FIELDS.items():
        assert {row.key for row in table.rows} == set(EXAMPLES[route])


async def ask(
    rig: GatewayRig, route: str, fields: dict[str, Any], key: str, step: str = ""
) -> tuple[int, bytes]:
    async with (
        aiohttp.ClientSession() as session,
        session.post(
            f"{rig.url}/v1/{route}",
            json={**BASE[route], **fields},
            headers={"authorization": f"Bearer {key}", "x-lightningrl-step": step},
        ) as response,
    ):
        return response.status, await response.read()


@pytest.mark.parametrize("route", FIELDS)
async def test_each_row_says_what_becomes_of_its_field(tmp_path: Path, route: str) -> None:
    async with open_rig(tmp_path) as rig:
        with ModelServer() as engine:
            await rig.register(engine.url)
            key = (await rig.claim()).key
            assert (await ask(rig, route, {}, key, "s-0"))[0] == 200  # `resp_s-0` is there
            [plain] = [arrival.body for arrival in engine.arrivals]
            for row in FIELDS[route].rows:
                before = engine.calls
                example = EXAMPLES[route][row.key]
                status, body = await ask(rig, route, example.fields, key)
                asked = [arrival.body for arrival in engine.arrivals[before:]]
                assert status == row.status, (row.key, body)
                check(route, row, example, plain, asked, body)


def check(
    route: str,
    row: Field,
    example: Example,
    plain: dict[str, Any],
    asked: list[dict[str, Any]],
    body: bytes,
) -> None:
    """Compare what the engine was asked, and the error, with what the row says."""
    match row.handling:
        case Handling.REFUSED:
            assert asked == [], row.key
            error = json.loads(body)["error"]
            assert error["message"]
            assert row.code == error["type" if route == "messages" else "code"], row.key
        case Handling.PASSED:
            assert example.engine, row.key
            assert {name: asked[0].get(name) for name in example.engine} == example.engine
        case Handling.EMULATED | Handling.ACCEPTED | Handling.LEFT_OUT:
            assert asked == [{**plain, **example.engine}], row.key


async def test_the_sdk_is_told_that_there_are_no_threads_in_the_form_that_it_acts_on(
    tmp_path: Path,
) -> None:
    async with open_rig(tmp_path) as rig:
        key = (await rig.claim()).key
        status, body = await ask(rig, "messages", {"thread": {"type": "create"}}, key)
    assert status == 400
    details = json.loads(body)["error"]["details"]
    assert details == {"error_code": "thread_unsupported_request"}


async def test_thinking_counts_above_the_engines_own_variable(tmp_path: Path) -> None:
    async with open_rig(tmp_path) as rig:
        with ModelServer() as engine:
            await rig.register(engine.url)
            key = (await rig.claim()).key
            given = {"chat_template_kwargs": {"enable_thinking": True, "x": 1}}
            fields = {**given, "thinking": {"type": "disabled"}}
            assert (await ask(rig, "messages", fields, key))[0] == 200
            [arrival] = engine.arrivals
            status, _ = await ask(rig, "messages", {"thinking": {"type": "later"}}, key)
    assert arrival.body["chat_template_kwargs"] == {"enable_thinking": False, "x": 1}
    assert status == 400


@pytest.mark.parametrize(
    ("route", "fields", "kept"),
    [
        ("chat/completions", {"tools": [], "tool_choice": "auto", "functions": []}, {}),
        ("chat/completions", {"stop": "", "parallel_tool_calls": True}, {}),
        ("responses", {"tools": [], "tool_choice": "auto", "parallel_tool_calls": False}, {}),
        ("responses", {"tools": [], "tool_choice": "auto", "instructions": ""}, {}),
        ("messages", {"tools": [], "tool_choice": {"type": "auto"}, "mcp_servers": []}, {}),
        ("completions", {"stop": ""}, {}),
        ("chat/completions", {"stop": ["", ""], "modalities": ["text"], "function_call": None}, {}),
        ("chat/completions", {"tools": None, "tool_choice": "none"}, {"tools": None}),
    ],
)
async def test_values_that_say_nothing_reach_no_engine(
    tmp_path: Path, route: str, fields: dict[str, Any], kept: dict[str, Any]
) -> None:
    """Strict engines refuse an empty list of tools, and a choice of none."""
    async with open_rig(tmp_path) as rig:
        with ModelServer() as engine:
            await rig.register(engine.url)
            claim = await rig.claim()
            assert (await ask(rig, route, {}, claim.key))[0] == 200
            assert (await ask(rig, route, fields, claim.key))[0] == 200
            plain, asked = (arrival.body for arrival in engine.arrivals)
        calls = await rig.calls(claim)
    assert asked == {**plain, **kept}
    assert [one.name for one in calls[1].rewrites] == ["left_out"]
    assert json.loads(calls[1].request).keys() >= fields.keys()


@pytest.mark.parametrize(
    ("route", "choice"),
    [
        ("chat/completions", "required"),
        ("responses", {"type": "function", "name": "f"}),
        ("messages", {"type": "any"}),
    ],
)
async def test_a_tool_that_must_be_chosen_must_be_declared(
    tmp_path: Path, route: str, choice: Any
) -> None:
    async with open_rig(tmp_path) as rig:
        with ModelServer() as engine:
            await rig.register(engine.url)
            status, body = await ask(rig, route, {"tool_choice": choice}, (await rig.claim()).key)
            assert engine.calls == 0
    assert status == 400
    assert "only allowed when 'tools' are specified" in json.loads(body)["error"]["message"]


@pytest.mark.parametrize(
    ("result", "read"),
    [
        ({"content": "boom", "is_error": True}, "Error: boom"),
        ({"is_error": True}, "Error"),
        ({"content": "fine", "is_error": False}, "fine"),
        (
            {"content": [{"type": "text", "text": t} for t in "ab"], "is_error": True},
            [{"type": "text", "text": t} for t in ("Error:", "a", "b")],
        ),
    ],
)
def test_the_model_reads_that_a_tool_failed(result: dict[str, Any], read: Any) -> None:
    block = {"type": "tool_result", "tool_use_id": "c", **result}
    [message] = anthropic.conversation({"messages": [{"role": "user", "content": [block]}]})
    assert message == {"role": "tool", "tool_call_id": "c", "content": read}
