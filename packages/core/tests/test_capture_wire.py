"""Streamed answers are kept as the same answers would be that came at once."""

from __future__ import annotations

from typing import Any

import pytest

from lightningrl.capture.wire import HIDDEN, answered_in_parts, asked
from lightningrl.schema import Dialect


def chunks(*deltas: dict[str, Any]) -> list[dict[str, Any]]:
    """The events of a stream with one choice."""
    return [{"choices": [{"index": 0, "delta": one, "text": None}]} for one in deltas]


def tool(index: int | None, name: str | None, arguments: str) -> dict[str, Any]:
    """A part of a tool call; without an index as some services send it."""
    part = {"function": {"name": name, "arguments": arguments}}
    return {"tool_calls": [part if index is None else {"index": index, **part}]}


def call(name: str, arguments: str) -> dict[str, Any]:
    return {"function": {"name": name, "arguments": arguments}}


@pytest.mark.parametrize(
    ("deltas", "message"),
    [
        # The last chunk of OpenAI's has an empty delta.
        ([{"role": "assistant", "content": "h"}, {"content": "i"}, {}], {"role": "assistant", "content": "hi"}),
        # SGLang names what is not there yet.
        ([{"content": None, "tool_calls": None}, tool(0, "f", "{}")], {"content": None, "tool_calls": [call("f", "{}")]}),
        ([tool(0, "", ""), tool(0, "f", "{}")], {"tool_calls": [call("f", "{}")]}),
        # A name that is repeated with each part.
        ([tool(0, "f", "{"), tool(0, "f", "}")], {"tool_calls": [call("f", "{}")]}),
        # One element without an index before others with one.
        ([tool(None, "f", "{}"), tool(0, "g", "{"), tool(0, None, "}")], {"tool_calls": [call("f", "{}"), call("g", "{}")]}),
    ],
)  # fmt: skip
def test_parts_of_a_chat_message_make_the_message(
    deltas: list[dict[str, Any]], message: dict[str, Any]
) -> None:
    assert answered_in_parts(Dialect.CHAT, chunks(*deltas)) == message


@pytest.mark.parametrize(
    ("dialect", "field", "server", "kept"),
    [
        (
            Dialect.RESPONSES,
            "tools",
            {"type": "mcp", "server_url": "u", "authorization": "secret", "headers": {"X-Key": "secret"}},
            {"type": "mcp", "server_url": "u", "authorization": HIDDEN, "headers": HIDDEN},
        ),
        (
            Dialect.RESPONSES,
            "tools",
            {"type": "mcp", "connector_id": "c", "authorization": "secret"},
            {"type": "mcp", "connector_id": "c", "authorization": HIDDEN},
        ),
        (
            Dialect.ANTHROPIC,
            "mcp_servers",
            {"type": "url", "url": "u", "authorization_token": "secret"},
            {"type": "url", "url": "u", "authorization_token": HIDDEN},
        ),
        (Dialect.CHAT, "tools", {"type": "function", "headers": "a"}, {"type": "function", "headers": "a"}),
    ],
)  # fmt: skip
def test_a_request_is_kept_without_the_credentials_of_its_servers(
    dialect: Dialect, field: str, server: dict[str, Any], kept: dict[str, Any]
) -> None:
    body: dict[str, Any] = {"input": [], "messages": [], field: [server]}
    found = asked(dialect, body)
    assert found[field] == [kept]
    assert body[field] == [server]


def test_parts_of_a_completion_make_its_text() -> None:
    events = [{"choices": [{"index": 0, "text": one}]} for one in ("h", "i", "")]
    assert answered_in_parts(Dialect.COMPLETIONS, events) == "hi"


def test_choices_are_told_apart_and_a_chunk_without_one_adds_nothing() -> None:
    events: list[dict[str, Any]] = [
        {"choices": [{"index": 1, "delta": {"content": "b"}}]},
        {"choices": [{"index": 0, "delta": {"content": "a"}}]},
        {"choices": []},
    ]
    assert answered_in_parts(Dialect.CHAT, events) == [{"content": "a"}, {"content": "b"}]
