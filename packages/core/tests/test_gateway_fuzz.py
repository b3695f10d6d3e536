"""No request body crashes the gateway: whatever comes, in every dialect, the answer is one or an error.

`LIGHTNINGRL_EXAMPLES` (8 unless set) times 50 requests: whole bodies of every dialect in which Hypothesis
replaces, removes and adds values anywhere, and bytes that are no JSON; by every path that means a route, with and
without names of agents. What is answered 200 must have been recorded so that its messages can be read back as the
engine got them.
"""

from __future__ import annotations

import asyncio
import copy
import json
import os
from collections.abc import AsyncGenerator, Iterator, MutableMapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lightningrl.conversation.history import Recorded, is_continuation
from lightningrl.schema import CallStatus, Claim, RewriteRules
from lightningrl_testkit.gateway import GatewayRig, open_rig, serve

REQUESTS = 50 * int(os.environ.get("LIGHTNINGRL_EXAMPLES", "8"))
CALLS_PER_ATTEMPT = 50
REFUSALS = {400, 404, 413}

SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}
CHAT_TOOL = {"type": "function", "function": {"name": "f", "parameters": SCHEMA}}
CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"city": "B"}'}}
CUSTOM_CALL = {"id": "d", "type": "custom", "custom": {"name": "p", "input": "x"}}
ARGUMENTS = (
    '{"input": "x"}',
    '{"command": ["ls"]}',
    '{"commands": ["ls"]}',
    "{",
    "[1]",
    '{"x": NaN}',
)
OPERATION = {"type": "create_file", "path": "a", "diff": "+x"}
PATHS = ("/v1/{}", "//v1//{}", "/v1/v1/{}", "/{}", "/v1/{}/", "/v1/{0}/{0}")
AGENTS = (b"", b"a", b"a/b", b"/%2F/a", b"\xff/%ff")
SAMPLING = {"temperature": 0.5, "top_p": 0.9, "stream": True}

SEEDS: dict[str, dict[str, Any]] = {
    "chat/completions": {
        **SAMPLING,
        "model": "m",
        "messages": [
            {"role": "system", "content": "s"},
            {"role": "developer", "content": [{"type": "text", "text": "d"}]},
            {"role": "user", "content": [{"type": "text", "text": "u"}]},
            {"role": "assistant", "content": None, "tool_calls": [CALL, CUSTOM_CALL]},
            {"role": "tool", "tool_call_id": "c", "content": "t"},
            {"role": "tool", "tool_call_id": "d", "content": [{"type": "text", "text": "t"}]},
            {"role": "system", "content": "later"},
        ],
        "tools": [
            CHAT_TOOL,
            {"type": "custom", "custom": {"name": "p", "format": {"type": "text"}}},
            {"type": "web_search"},
        ],
        "tool_choice": {"type": "function", "function": {"name": "f"}},
        "response_format": {"type": "json_schema", "json_schema": {"schema": SCHEMA}},
        "stream_options": {"include_usage": True},
        "logprobs": True,
        "max_tokens": 5,
        "max_completion_tokens": 5,
        "n": 1,
        "seed": 1,
        "logit_bias": {"1": 1},
        "top_k": 4,
    },
    "responses": {
        **SAMPLING,
        "model": "m",
        "instructions": "i",
        "previous_response_id": None,
        "input": [
            {"role": "user", "content": [{"type": "input_text", "text": "u"}]},
            {"type": "message", "role": "developer", "content": "d"},
            {"type": "reasoning", "id": "r", "summary": [], "content": [{"text": "x"}]},
            {
                "type": "message",
                "role": "assistant",
                "content": [
                    {"type": "output_text", "text": "a", "annotations": []},
                    {"type": "refusal", "refusal": "no"},
                ],
            },
            {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
            {"type": "custom_tool_call", "call_id": "d", "name": "p", "input": "x"},
            {"role": "user", "content": "between"},
            {"type": "custom_tool_call_output", "call_id": "d", "output": "o"},
            {"type": "function_call_output", "call_id": "c", "output": "o"},
            {"type": "local_shell_call", "call_id": "e", "action": {"command": ["ls"]}},
            {"type": "local_shell_call_output", "id": "e", "output": "o"},
            {"type": "shell_call", "call_id": "g", "action": {"commands": ["ls"]}},
            {
                "type": "shell_call_output",
                "call_id": "g",
                "output": [
                    {"stdout": "a", "stderr": "", "outcome": {"type": "exit", "exit_code": 0}}
                ],
            },
            {"type": "apply_patch_call", "call_id": "h", "operation": OPERATION},
            {"type": "apply_patch_call_output", "call_id": "h", "status": "failed", "output": "o"},
            {"type": "additional_tools", "tools": [{"type": "custom", "name": "late"}]},
            {"type": "tool_search_call", "call_id": "i", "arguments": {"q": "x"}},
            {"type": "tool_search_output", "call_id": "i", "tools": [{"type": "shell"}]},
            {"type": "item_reference", "id": "msg_s-0"},
            {"role": "user", "content": [{"type": "input_image", "image_url": "http://i"}]},
            {"role": "user", "content": [{"type": "input_file", "file_data": "x"}]},
        ],
        "tools": [
            {"type": "function", "name": "f", "parameters": SCHEMA, "strict": True},
            {
                "type": "custom",
                "name": "p",
                "format": {"type": "grammar", "syntax": "lark", "definition": "d"},
            },
            {
                "type": "namespace",
                "name": "n",
                "description": "d",
                "tools": [{"type": "function", "name": "f"}],
            },
            {"type": "local_shell"},
            {"type": "apply_patch"},
            {"type": "tool_search", "execution": "client"},
            {"type": "web_search"},
        ],
        "tool_choice": {
            "type": "allowed_tools",
            "mode": "auto",
            "tools": [
                {"type": "function", "name": "f", "namespace": "n"},
                {"type": "custom", "name": "p"},
                {"type": "local_shell"},
            ],
        },
        "text": {"format": {"type": "json_schema", "name": "x", "schema": SCHEMA}},
        "reasoning": {"effort": "low", "summary": "auto"},
        "include": ["message.output_text.logprobs"],
        "metadata": {"a": "b"},
        "max_output_tokens": 5,
        "top_logprobs": 2,
        "store": True,
        "truncation": "auto",
        "background": False,
        "client_metadata": {"a": "b"},
        "chat_template_kwargs": {"x": 1},
        "unheard_of": [1],
    },
    "messages": {
        **SAMPLING,
        "model": "m",
        "max_tokens": 5,
        "system": [{"type": "text", "text": "s"}],
        "messages": [
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "u"},
                    {
                        "type": "image",
                        "source": {"type": "base64", "media_type": "image/png", "data": "A"},
                    },
                    {"type": "document", "source": {"type": "text", "data": "d"}},
                    {
                        "type": "document",
                        "title": "t",
                        "context": "c",
                        "source": {"type": "content", "content": [{"type": "text", "text": "x"}]},
                    },
                ],
            },
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "t", "signature": ""},
                    {"type": "text", "text": "a"},
                    {"type": "tool_use", "id": "c", "name": "f", "input": {"city": "B"}},
                ],
            },
            {
                "role": "user",
                "content": [
                    {
                        "type": "tool_result",
                        "tool_use_id": "c",
                        "content": [
                            {"type": "text", "text": "o"},
                            {"type": "tool_reference", "tool_name": "f"},
                            {
                                "type": "search_result",
                                "title": "t",
                                "source": "s",
                                "content": [{"type": "text", "text": "x"}],
                            },
                        ],
                        "is_error": True,
                    }
                ],
            },
        ],
        "tools": [
            {"name": "f", "input_schema": SCHEMA},
            {"type": "bash_20250124", "name": "bash"},
            {"type": "computer_20250124", "name": "computer", "display_width_px": 5},
            {"type": "web_search_20250305", "name": "web_search"},
        ],
        "tool_choice": {"type": "tool", "name": "f", "disable_parallel_tool_use": True},
        "stop_sequences": ["x"],
        "thinking": {"type": "enabled", "budget_tokens": 1024},
        "output_config": {"format": {"type": "json_schema", "schema": SCHEMA}, "effort": "low"},
        "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
        "container": {"skills": []},
        "mcp_servers": [],
        "chat_template_kwargs": {"x": 1},
        "unheard_of": {"x": 1},
    },
    "completions": {
        **SAMPLING,
        "model": "m",
        "prompt": ["p"],
        "max_tokens": 5,
        "logprobs": 1,
        "n": 1,
        "echo": False,
        "best_of": 1,
        "stop": ["x"],
        "stream_options": {"include_usage": True},
    },
}

RULES = RewriteRules(
    roles={"developer": "system"},
    merge_instructions=True,
    alone_as_user=True,
    later_as_user=True,
    lost=("other",),
    thinks=True,
    drop_hosted=True,
    free=True,
    put_back=True,
    variables={"x": 1},
)
"""Every rewrite that a template may need."""

KEYS = sorted(
    {name for seed in SEEDS.values() for name in seed}
    | {"role", "content", "type", "id", "text", "name", "call_id", "source", "input", "unheard_of"}
    | {
        "action",
        "operation",
        "command",
        "output",
        "mode",
        "namespace",
        "custom",
        "format",
        "function",
    }
)
scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8)
    | st.sampled_from(["user", "assistant", "tool", "auto", "function", "message", "resp_s-0", ""])
    | st.sampled_from(
        ["system", "developer", "ipython", "custom", "namespace", "shell", "web_search"]
    )
    | st.sampled_from(
        ["custom_tool_call", "shell_call_output", "additional_tools", "allowed_tools"]
    )
    | st.sampled_from(["search_result", "tool_reference", "bash_20250124", "required"])
)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=6,
)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of everything inside a JSON value."""
    inside = enumerate(value) if isinstance(value, list) else ()
    inside = value.items() if isinstance(value, dict) else inside
    for key, one in inside:
        yield (*path, key)
        yield from places(one, (*path, key))


PLACES = {route: sorted(places(seed), key=repr) for route, seed in SEEDS.items()}


def edited(body: Any, path: tuple[Any, ...], edit: str, value: Any) -> None:
    """Change the value at `path`, if an earlier change left it there."""
    *way, last = path
    try:
        for key in way:
            body = body[key]
        match edit:
            case "replace":
                body[last] = value
            case "remove":
                del body[last]
            case _ if isinstance(body[last], list):
                body[last].append(value)
            case _:
                body[last][value if isinstance(value, str) else "unheard_of"] = value
    except (KeyError, IndexError, TypeError):
        pass


@st.composite
def requests(draw: st.DrawFn) -> list[tuple[str, bytes]]:
    """The same changes done to a body of each dialect; drawing is what takes the time."""
    edits = draw(
        st.lists(
            st.tuples(st.integers(0, 999), st.sampled_from(["replace", "remove", "add"]), values),
            max_size=4,
        )
    )
    damage, at, junk = draw(st.integers(0, 19)), draw(st.integers(0, 999)), b""
    if damage == 1:
        junk = draw(st.binary(min_size=1, max_size=3))
    return [(route, damaged(body, damage, at, junk)) for route, body in changed(edits)]


def changed(edits: list[tuple[int, str, Any]]) -> Iterator[tuple[str, bytes]]:
    for route, seed in SEEDS.items():
        body = copy.deepcopy(seed)
        for place, edit, value in edits:
            edited(body, PLACES[route][place % len(PLACES[route])], edit, value)
        yield route, json.dumps(body).encode()


def damaged(whole: bytes, damage: int, at: int, junk: bytes) -> bytes:
    """One in ten bodies is cut off, or has other bytes in it."""
    at = at % (len(whole) + 1)
    return whole[:at] if damage == 0 else whole[:at] + junk + whole[at:]


def names_of_tools(request: dict[str, Any]) -> list[str]:
    """The functions that an engine is given, which it then calls; all must be some."""
    tools = request.get("tools") or []
    if not isinstance(tools, list) or not all(isinstance(one, dict) for one in tools):
        return []
    assert {one.get("type", "function") for one in tools} <= {"function"}
    found = (one.get("function") for one in tools)
    names = (one.get("name") for one in found if isinstance(one, dict))
    return [one for one in names if isinstance(one, str)]


class Engine:
    """Answers whatever it is asked, and keeps the messages that it was asked to continue."""

    def __init__(self) -> None:
        self.asked: dict[str, Any] = {}
        """By the id of the call."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        body = b""
        more = True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        request = json.loads(body)
        call_id = dict(scope["headers"])[b"x-request-id"].decode()
        self.asked[call_id] = request.get("messages")
        calls = [
            {**CALL, "id": f"c{place}", "function": {"name": name, "arguments": arguments}}
            for place, name in enumerate(names_of_tools(request))
            for arguments in (ARGUMENTS[(len(self.asked) + place) % len(ARGUMENTS)],)
        ]
        common = {"index": 0, "finish_reason": "stop", "token_ids": [5, 6]}
        entries = [{"token": "x", "logprob": -0.5, "bytes": [1], "top_logprobs": []}] * 2
        choice: dict[str, Any] = {
            "message": {"role": "assistant", "content": "a", "tool_calls": calls},
            "logprobs": {"content": entries},
        }
        if "messages" not in request:
            choice = {"text": "a", "logprobs": {"token_logprobs": [-0.5, -0.5]}}
        usage = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
        reply = {"choices": [{**common, **choice}], "usage": usage, "prompt_token_ids": [1, 2, 3]}
        answer = json.dumps(reply).encode()
        head = [(b"content-type", b"application/json")]
        await send({"type": "http.response.start", "status": 200, "headers": head})
        await send({"type": "http.response.body", "body": answer})


class Fuzzed:
    """A gateway that is called without a network, over a real store and a real engine's connection."""

    def __init__(self, rig: GatewayRig, engine: Engine, claim: Claim) -> None:
        self.rig = rig
        self.engine = engine
        self.claim = claim
        self.sent = 0
        self.answered = 0

    async def send(self, route: str, body: bytes) -> tuple[int, bytes]:
        number = self.sent
        path = PATHS[number % len(PATHS)].format(route)
        self.sent += 1
        scope = {
            "type": "http",
            "method": "POST",
            "path": path,
            "raw_path": path.encode(),
            "headers": [
                (b"authorization", f"Bearer {self.claim.key}".encode()),
                (b"x-lightningrl-step", b"s-%d" % number),
                (b"x-lightningrl-agent", AGENTS[number % len(AGENTS)]),
            ],
        }
        inbox = [{"type": "http.request", "body": body, "more_body": False}]
        parts: list[MutableMapping[str, Any]] = []

        async def receive() -> MutableMapping[str, Any]:
            if inbox:
                return inbox.pop()
            return await asyncio.get_running_loop().create_future()

        async def send(message: MutableMapping[str, Any]) -> None:
            parts.append(message)

        await self.rig.gateway(scope, receive, send)
        return parts[0]["status"], b"".join(part.get("body", b"") for part in parts[1:])

    async def next_attempt(self) -> None:
        """Check what was recorded, and go on in a fresh attempt."""
        recorded = Recorded()
        calls = await self.rig.calls(self.claim)
        delivered = [call for call in calls if call.status is CallStatus.DELIVERED]
        assert {call.id for call in delivered} == set(self.engine.asked)
        for call in delivered:
            is_continuation(call)
            asked = self.engine.asked[call.id]
            assert asked is None or recorded.messages(call) == asked
            recorded.add(call)
        self.answered += len(delivered)
        self.engine.asked.clear()
        self.claim = await self.rig.claim()
        self.sent = 0


@asynccontextmanager
async def fuzzed(folder: Path) -> AsyncGenerator[Fuzzed]:
    engine = Engine()
    async with open_rig(folder) as rig, serve(engine) as url:
        await rig.register(f"{url}/v1", rules=RULES)
        yield Fuzzed(rig, engine, await rig.claim())


def check(route: str, status: int, body: bytes) -> None:
    """An answer, or an error in the dialect's form."""
    if status == 200:
        return
    assert status in REFUSALS, body
    whole = json.loads(body)
    error = whole["error"]
    assert isinstance(error["message"], str)
    assert error["message"]
    assert route != "messages" or {"type", "message"} <= set(error) <= {
        "type",
        "message",
        "details",
    }
    assert ("type" in whole) == (route == "messages")


@pytest.mark.timeout(3600)
def test_no_request_crashes_the_gateway(tmp_path: Path) -> None:
    with asyncio.Runner() as runner:
        opened = fuzzed(tmp_path)
        target = runner.run(opened.__aenter__())

        async def send(bodies: list[tuple[str, bytes]]) -> None:
            answers = await asyncio.gather(*(target.send(route, body) for route, body in bodies))
            for (route, _), (status, answer) in zip(bodies, answers, strict=True):
                check(route, status, answer)
            if target.sent >= CALLS_PER_ATTEMPT:
                await target.next_attempt()

        @settings(
            max_examples=REQUESTS // len(SEEDS),
            deadline=None,
            database=None,
            suppress_health_check=[HealthCheck.too_slow],
        )
        @given(requests())
        def fuzz(bodies: list[tuple[str, bytes]]) -> None:
            runner.run(send(bodies))

        try:
            fuzz()
            runner.run(target.next_attempt())
            assert target.answered > REQUESTS // 10  # most of what was changed little is answered
        finally:
            runner.run(opened.__aexit__(None, None, None))


def test_the_seeds_themselves_are_answered(tmp_path: Path) -> None:
    async def ask() -> list[int]:
        async with fuzzed(tmp_path) as target:
            first = {"model": "m", "input": "Hi"}
            statuses = [(await target.send("responses", json.dumps(first).encode()))[0]]
            for route, seed in SEEDS.items():
                statuses.append((await target.send(route, json.dumps(seed).encode()))[0])
            await target.next_attempt()
            return statuses

    assert asyncio.run(ask()) == [200] * 5
