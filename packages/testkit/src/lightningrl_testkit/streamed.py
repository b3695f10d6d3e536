"""A scripted completion as the server-sent events in which a vendor streams it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

_PIECE = 5
"""Characters in one event."""


def events(completion: dict[str, Any], *, with_usage: bool) -> Iterator[bytes]:
    """The events of one answered request, `[DONE]` included.

    Args:
        completion: the whole response.
        with_usage: whether the last chunk before the end counts tokens, as `stream_options` asks.
    """
    head = {name: completion[name] for name in ("id", "created", "model")}
    head["object"] = "chat.completion.chunk"
    for choice in completion["choices"]:
        deltas = [*_deltas(choice["message"]), {}]
        for number, delta in enumerate(deltas, 1):
            finish = choice["finish_reason"] if number == len(deltas) else None
            part = {"index": choice["index"], "delta": delta, "finish_reason": finish}
            yield _event({**head, "choices": [part]})
    if with_usage:
        yield _event({**head, "choices": [], "usage": completion["usage"]})
    yield b"data: [DONE]\n\n"


def _deltas(message: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield {"role": "assistant", "content": ""}
    for piece in _pieces(message["content"] or ""):
        yield {"content": piece}
    for index, call in enumerate(message.get("tool_calls") or ()):
        function = {"name": call["function"]["name"], "arguments": ""}
        yield {"tool_calls": [{**call, "index": index, "function": function}]}
        for piece in _pieces(call["function"]["arguments"]):
            yield {"tool_calls": [{"index": index, "function": {"arguments": piece}}]}


def _pieces(text: str) -> Iterator[str]:
    for start in range(0, len(text), _PIECE):
        yield text[start : start + _PIECE]


def _event(chunk: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(chunk).encode() + b"\n\n"
