"""Tools that the agent runs though they are no functions: what the engine is given, and what comes back."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from lightningrl.conversation import anthropic, responses
from lightningrl.conversation.history import Recorded, messages_of
from lightningrl.conversation.malformed import Malformed
from lightningrl.conversation.rewriting.fields import raw_fields
from lightningrl.conversation.tools import chat
from lightningrl.conversation.tools.responses import declared
from lightningrl.gateway.dialects.reading import decoded_fields
from lightningrl.schema import Claim, LogEvent, LogTopic, RewriteRules
from lightningrl_testkit.gateway import GatewayRig, open_rig
from lightningrl_testkit.model_server import Answer, ModelServer, ToolCall

HI: list[Any] = [{"role": "user", "content": "Hi"}]
SCHEMA: dict[str, Any] = {"type": "object", "properties": {}}
PATCH = "*** Begin Patch\n*** End Patch"
TOOLS: list[Any] = [
    {"type": "function", "name": "f", "parameters": SCHEMA},
    {
        "type": "custom",
        "name": "patch",
        "description": "Patches.",
        "format": {"type": "grammar", "syntax": "lark", "definition": "start: X"},
    },
    {
        "type": "namespace",
        "name": "crm",
        "description": "Customers.",
        "tools": [
            {"type": "function", "name": "get", "description": "One."},
            {"type": "custom", "name": "say"},
        ],
    },
    {"type": "local_shell"},
    {"type": "shell", "environment": {"type": "local"}},
    {"type": "apply_patch"},
    {"type": "tool_search", "execution": "client", "parameters": SCHEMA},
]
NAMES = ["f", "patch", "crm__get", "crm__say", "local_shell", "shell", "apply_patch", "tool_search"]


def request(*items: Any, **fields: Any) -> dict[str, Any]:
    return {"model": "m", "input": [*HI, *items], "tools": TOOLS, **fields}


def called(name: str, arguments: Any, call_id: str = "c") -> dict[str, Any]:
    """The assistant's message that calls a function."""
    text = arguments if isinstance(arguments, str) else json.dumps(arguments)
    function = {"name": name, "arguments": text}
    call = {"id": call_id, "type": "function", "function": function}
    return {"role": "assistant", "content": None, "tool_calls": [call]}


def sent_back(name: str, arguments: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """The item that a call comes back as, and the message that it is when it is sent back."""
    forms = declared(TOOLS, ()).forms
    [item] = responses.output_items(called(name, arguments), "s", forms=forms)
    [message] = responses.chat_messages([item])
    return item, message


def test_what_the_agent_runs_becomes_functions() -> None:
    asked = responses.chat_request(request(), responses.Responses())
    functions = [tool["function"] for tool in asked["tools"]]
    assert [one["name"] for one in functions] == NAMES
    assert (
        functions[1]["description"]
        == "Patches.\n\nThe input must follow this grammar (lark):\nstart: X"
    )
    assert functions[1]["parameters"]["required"] == ["input"]
    assert functions[2]["description"] == "Customers.\n\nOne."
    assert functions[4]["parameters"]["required"] == ["command"]


@pytest.mark.parametrize(
    ("name", "arguments", "item"),
    [
        ("f", {"a": 1}, {"type": "function_call", "name": "f", "arguments": '{"a": 1}'}),
        ("patch", {"input": PATCH}, {"type": "custom_tool_call", "name": "patch", "input": PATCH}),
        ("crm__get", {"a": 1}, {"type": "function_call", "name": "get", "namespace": "crm"}),
        ("crm__say", {"input": "é"}, {"type": "custom_tool_call", "name": "say", "input": "é"}),
        (
            "local_shell",
            {"command": ["ls"], "timeout_ms": 5},
            {
                "type": "local_shell_call",
                "action": {"type": "exec", "command": ["ls"], "timeout_ms": 5, "env": {}},
            },
        ),
        (
            "shell",
            {"commands": ["ls"]},
            {
                "type": "shell_call",
                "action": {"commands": ["ls"], "timeout_ms": None, "max_output_length": None},
            },
        ),
        (
            "apply_patch",
            {"type": "create_file", "path": "a", "diff": "+x"},
            {
                "type": "apply_patch_call",
                "operation": {"type": "create_file", "path": "a", "diff": "+x"},
            },
        ),
        ("tool_search", {"q": "x"}, {"type": "tool_search_call", "arguments": {"q": "x"}}),
    ],
)
def test_calls_come_back_in_their_own_form_and_are_the_same_calls_when_sent_back(
    name: str, arguments: Any, item: dict[str, Any]
) -> None:
    found, message = sent_back(name, arguments)
    assert {key: found.get(key) for key in item} == item
    assert found["call_id"] == "c"
    [call] = message["tool_calls"]
    assert call["function"]["name"] == name
    assert json.loads(call["function"]["arguments"]) == arguments


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("patch", "{"),
        ("patch", {"input": 1}),
        ("patch", {"input": "x", "y": 1}),
        ("local_shell", {"command": "ls"}),
        ("shell", "[1]"),
        ("apply_patch", {"type": "create_file", "path": "a"}),
        ("apply_patch", {"type": ["x"]}),
        ("tool_search", "NaN"),
    ],
)
def test_a_call_that_does_not_fit_its_form_stays_what_was_sampled(
    name: str, arguments: Any
) -> None:
    item, message = sent_back(name, arguments)
    assert item["type"] == "function_call"
    assert message == called(name, arguments)


@pytest.mark.parametrize(
    ("item", "content"),
    [
        ({"type": "custom_tool_call_output", "output": "done"}, "done"),
        ({"type": "local_shell_call_output", "output": "a"}, "a"),
        (
            {
                "type": "shell_call_output",
                "output": [
                    {"stdout": "a", "stderr": "b", "outcome": {"type": "exit", "exit_code": 1}},
                    {"stdout": "", "stderr": "", "outcome": {"type": "timeout"}},
                ],
            },
            "a\nb\nexit code 1\ntimed out",
        ),
        ({"type": "apply_patch_call_output", "status": "completed"}, "Done."),
        ({"type": "apply_patch_call_output", "status": "failed", "output": "x"}, "Error: x"),
        (
            {"type": "tool_search_output", "tools": [{"type": "function", "name": "g"}]},
            "Tools that are there now: g.",
        ),
    ],
)
def test_outputs_are_read(item: dict[str, Any], content: str) -> None:
    [message] = responses.chat_messages([{"call_id": "c", **item}])
    assert message == {"role": "tool", "tool_call_id": "c", "content": content}


def test_a_local_shells_output_may_name_its_call_by_id() -> None:
    [message] = responses.chat_messages(
        [{"type": "local_shell_call_output", "id": "c", "output": "a"}]
    )
    assert message["tool_call_id"] == "c"


def test_items_declare_tools_too() -> None:
    more = {"type": "additional_tools", "tools": [{"type": "custom", "name": "late"}]}
    asked = responses.chat_request(request(more), responses.Responses())
    assert [tool["function"]["name"] for tool in asked["tools"]] == [*NAMES, "late"]
    assert asked["messages"] == HI


def test_results_follow_their_answer_in_the_order_of_its_calls() -> None:
    items = [
        {"type": "function_call", "call_id": one, "name": "f", "arguments": "{}"} for one in "ab"
    ]
    results = [{"type": "function_call_output", "call_id": one, "output": one} for one in "ba"]
    between = {"role": "user", "content": "by the way"}
    found = responses.chat_messages([*HI, *items, results[0], between, results[1]])
    assert [one["role"] for one in found] == ["user", "assistant", "tool", "tool", "user"]
    assert [one["content"] for one in found[2:4]] == ["a", "b"]
    blocks: list[Any] = [
        {"type": "tool_result", "tool_use_id": "b", "content": "b"},
        {"type": "text", "text": "by the way"},
        {"type": "tool_result", "tool_use_id": "a", "content": "a"},
    ]
    uses = [{"type": "tool_use", "id": one, "name": "f", "input": {}} for one in "ab"]
    turns: list[Any] = [{"role": "assistant", "content": uses}, {"role": "user", "content": blocks}]
    assert [one["content"] for one in anthropic.conversation({"messages": turns})[1:]] == [
        "a",
        "b",
        "by the way",
    ]


@pytest.mark.parametrize(
    ("allowed", "names"),
    [
        ([{"type": "function", "name": "f"}], ["f"]),
        ([{"type": "custom", "name": "patch"}, {"type": "shell"}], ["patch", "shell"]),
        ([{"type": "function", "name": "get", "namespace": "crm"}], ["crm__get"]),
    ],
)
def test_allowed_tools_alone_are_declared(allowed: list[Any], names: list[str]) -> None:
    choice = {"type": "allowed_tools", "mode": "required", "tools": allowed}
    asked = responses.chat_request(request(tool_choice=choice), responses.Responses())
    assert [tool["function"]["name"] for tool in asked["tools"]] == names
    assert asked["tool_choice"] == "required"
    choice["tools"] = [{"type": "function", "name": "nobody"}]
    with pytest.raises(Malformed, match="'nobody' not found"):
        responses.chat_request(request(tool_choice=choice), responses.Responses())


@pytest.mark.parametrize("kind", ["bash_20250124", "memory_20250818", "text_editor_20250728"])
def test_anthropics_tools_that_the_client_runs_become_functions(kind: str) -> None:
    asked = anthropic.chat_request({"messages": HI, "tools": [{"type": kind, "name": "x"}]})
    [tool] = asked["tools"]
    assert tool["function"]["name"] == "x"
    assert "command" in tool["function"]["parameters"]["properties"]


def test_the_model_is_told_the_size_of_the_screen() -> None:
    tool = {"type": "computer_20250124", "display_width_px": 640, "display_height_px": 480}
    [found] = anthropic.chat_request({"messages": HI, "tools": [tool]})["tools"]
    assert found["function"]["name"] == "computer"
    assert found["function"]["description"].endswith("(display width: 640, display height: 480)")


@pytest.mark.parametrize(
    ("block", "text"),
    [
        ({"type": "tool_reference", "tool_name": "b"}, "The tool b is there now."),
        (
            {
                "type": "search_result",
                "title": "T",
                "source": "s",
                "content": [{"type": "text", "text": "x"}],
            },
            "T\ns\nx",
        ),
        ({"type": "document", "source": {"type": "text", "data": "x"}}, "x"),
        (
            {
                "type": "document",
                "title": "T",
                "context": "c",
                "source": {"type": "text", "data": "x"},
            },
            "T\nc\nx",
        ),
        ({"type": "document", "title": "T", "source": {"type": "content", "content": "x"}}, "T\nx"),
        (
            {
                "type": "document",
                "context": None,
                "source": {
                    "type": "content",
                    "content": [{"type": "text", "text": "x"}, {"type": "text", "text": "y"}],
                },
            },
            "x\ny",
        ),
    ],
)
def test_blocks_that_are_texts_are_read(block: dict[str, Any], text: str) -> None:
    result = {"type": "tool_result", "tool_use_id": "c", "content": [block]}
    [message] = anthropic.conversation({"messages": [{"role": "user", "content": [result]}]})
    assert message["content"] == text


def test_a_file_has_its_title_before_it() -> None:
    source = {"type": "base64", "media_type": "application/pdf", "data": "eA=="}
    block = {"type": "document", "title": "T", "source": source}
    [message] = anthropic.conversation({"messages": [{"role": "user", "content": [block]}]})
    data = "data:application/pdf;base64,eA=="
    file = {"type": "file", "file": {"file_data": data}}
    assert message["content"] == [{"type": "text", "text": "T"}, file]


def test_a_file_elsewhere_is_refused_by_name() -> None:
    part = {"type": "input_file", "file_url": "http://host/x.pdf"}
    item = {"role": "user", "content": [part]}
    with pytest.raises(Malformed, match="not fetched here") as refused:
        responses.chat_messages([item])
    assert refused.value.param == "input[0].content[0].file_url"


def test_chat_requests_without_such_tools_keep_their_bytes() -> None:
    body = (
        b'{"messages":[{"role":"user","content":[{"type": "text", "text":"\\u00e9"}]}],"tools":[]}'
    )
    fields = raw_fields(body)
    assert chat.chat_request(fields) is fields


def test_a_malformed_declaration_is_refused_by_its_path() -> None:
    with pytest.raises(Malformed) as failed:
        responses.chat_request(
            request(tools=[{"type": "namespace", "name": "n", "tools": [{"type": "custom"}]}]),
            responses.Responses(),
        )
    assert failed.value.param == "tools[0].tools[0].name"


@pytest.mark.parametrize("empty", ["", [], None])
def test_an_empty_answer_at_the_end_says_nothing(empty: Any) -> None:
    end = {"role": "assistant", "content": empty}
    fields = raw_fields({"messages": [*HI, end]})
    assert json.loads(bytes(chat.chat_request(fields)["messages"])) == HI
    if empty is not None:
        assert anthropic.conversation({"messages": [*HI, end]}) == HI
        given = {"input": [*HI, {"type": "message", **end}]}
        assert responses.conversation(given, responses.Responses()) == HI


@pytest.mark.parametrize(
    "end",
    [
        {"role": "assistant", "content": "x"},
        {"role": "assistant", "content": "", "reasoning": "x"},
        {"role": "assistant", "content": None, "tool_calls": [{"type": "function"}]},
        {"role": "user", "content": ""},
    ],
)
def test_what_says_something_stays_at_the_end(end: dict[str, Any]) -> None:
    fields = raw_fields({"messages": [*HI, end]})
    assert chat.chat_request(fields) is fields
    assert chat.messages_in([*HI, end]) == [*HI, end]


# -- at the gateway ----------------------------------------------------------------------------


async def post(
    rig: GatewayRig, claim: Claim, route: str, body: dict[str, Any], *, step: str = ""
) -> tuple[int, str]:
    headers = {"authorization": f"Bearer {claim.key}", "x-lightningrl-step": step}
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{rig.url}/v1/{route}", json=body, headers=headers) as response,
    ):
        return response.status, await response.text()


def calling(name: str, arguments: str) -> ModelServer:
    return ModelServer(lambda _: Answer("", tool_calls=(ToolCall("c", name, arguments),)))


async def test_a_custom_call_goes_round_by_items_by_the_responses_id_and_in_a_stream(
    tmp_path: Path,
) -> None:
    output = {"type": "custom_tool_call_output", "call_id": "c", "output": "ok"}
    async with open_rig(tmp_path) as rig:
        with calling("patch", json.dumps({"input": PATCH})) as engine:
            await rig.register(engine.url)
            claim = await rig.claim()
            _, told = await post(rig, claim, "responses", request(), step="s-0")
            [item] = json.loads(told)["output"]
            await post(rig, claim, "responses", request(item, output))
            by_id = {**request(), "input": [output], "previous_response_id": "resp_s-0"}
            await post(rig, claim, "responses", by_id)
            _, stream = await post(rig, claim, "responses", {**request(), "stream": True})
            asked = [arrival.body["messages"] for arrival in engine.arrivals]
        calls = await rig.calls(claim)
    assert (item["type"], item["input"]) == ("custom_tool_call", PATCH)
    assert asked[1] == asked[2] == [*HI, called("patch", {"input": PATCH}), asked[1][-1]]
    assert "response.custom_tool_call_input.done" in stream
    assert [messages_of(call, calls[:place]) for place, call in enumerate(calls)] == asked
    assert {call.choices[0].untrainable for call in calls} == {None}


async def test_a_custom_tool_of_chat_completions_comes_back_in_its_form(tmp_path: Path) -> None:
    tool = {"type": "custom", "custom": {"name": "patch"}}
    body: dict[str, Any] = {"model": "m", "messages": HI, "tools": [tool]}
    async with open_rig(tmp_path) as rig:
        with calling("patch", '{"input": "x"}') as engine:
            await rig.register(engine.url)
            claim = await rig.claim()
            _, told = await post(rig, claim, "chat/completions", body)
            message = json.loads(told)["choices"][0]["message"]
            result = {"role": "tool", "tool_call_id": "c", "content": "ok"}
            again = {**body, "messages": [*HI, message, result], "stream": True}
            _, stream = await post(rig, claim, "chat/completions", again)
            asked = [arrival.body["messages"] for arrival in engine.arrivals]
        recorded = Recorded()
        read: list[Any] = []
        for call in await rig.calls(claim):
            read.append(recorded.messages(call))
            recorded.add(call)
    [call] = message["tool_calls"]
    assert call == {"id": "c", "type": "custom", "custom": {"name": "patch", "input": "x"}}
    assert asked[1][1]["tool_calls"][0]["function"]["arguments"] == '{"input": "x"}'
    assert '"custom":{"input":"x"}' in stream
    assert read == asked


@pytest.mark.parametrize(
    ("route", "tool", "switch"),
    [
        ("chat/completions", {"type": "web_search"}, "web_search ="),
        ("responses", {"type": "web_search"}, "web_search ="),
        ("responses", {"type": "code_interpreter", "container": {"type": "auto"}}, "ake it out"),
        (
            "responses",
            {"type": "shell", "environment": {"type": "container_auto"}},
            "ake it out",
        ),
        ("messages", {"type": "web_search_20250305", "name": "web_search"}, "disallowedTools"),
        ("messages", {"type": "tool_search_tool_regex_20251119"}, "ENABLE_TOOL_SEARCH=false"),
        ("messages", {"type": "browser_toolset_20260801"}, "as a function with a schema"),
    ],
)
async def test_what_nobody_runs_is_refused_with_the_harnesss_switch_or_left_out_with_a_line(
    tmp_path: Path, route: str, tool: dict[str, Any], switch: str
) -> None:
    body: dict[str, Any] = {"model": "m", "tools": [tool], "tool_choice": "auto"}
    body |= {"input": "Hi"} if route == "responses" else {"messages": HI}
    if route == "messages":
        body |= {"tool_choice": {"type": "auto"}, "max_tokens": 9}
    async with open_rig(tmp_path) as rig:
        with ModelServer() as engine:
            await rig.register(engine.url)
            claim = await rig.claim()
            status, told = await post(rig, claim, route, body)
            assert (status, engine.calls) == (400, 0)
            assert switch in json.loads(told)["error"]["message"]
            assert "gateway.hosted_tools: drop" in told
            await rig.register(engine.url, rules=RewriteRules(drop_hosted=True))
            claim = await rig.claim()
            answers = await asyncio.gather(*(post(rig, claim, route, body) for _ in range(2)))
            assert [status for status, _ in answers] == [200, 200]
            assert not {"tools", "tool_choice"} & set(engine.arrivals[0].body)
        [events] = await rig.store.events([claim.attempt.id])
        calls = await rig.calls(claim)
    logs = (one for one in events if isinstance(one, LogEvent))
    lines = [one for one in logs if one.topic is LogTopic.HOSTED_TOOL]
    assert len(lines) == 1
    assert tool["type"] in lines[0].message
    assert [one.name for one in calls[0].rewrites] == ["hosted_tools", "left_out"]
    assert decoded_fields(calls[0].request)["tools"] == [tool]
    assert "tools" not in Recorded().request(calls[0])


async def test_a_content_part_that_nobody_knows_is_refused_by_name(tmp_path: Path) -> None:
    async with open_rig(tmp_path) as rig:
        with ModelServer() as engine:
            await rig.register(engine.url)
            content = [{"type": "text", "text": "a"}, {"type": "smell", "text": "b"}]
            body = {"model": "m", "messages": [{"role": "user", "content": content}]}
            status, told = await post(rig, await rig.claim(), "chat/completions", body)
            assert engine.calls == 0
    assert status == 400
    assert "'smell'" in told
    assert "messages[0].content[1].type" in told
