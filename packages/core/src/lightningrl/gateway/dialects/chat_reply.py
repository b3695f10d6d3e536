"""A finished chat completion as the agent gets it: whole, or as server-sent events.

The engine is never called with `stream`: streamed token ids get lost around tool calls (vLLM issue
27482), and one event per token costs ten times the CPU. The chunks add up to exactly the message
that a client without `stream` gets.
"""

from __future__ import annotations

from typing import Any

import msgspec

from lightningrl.conversation.tools.chat import custom_call

_NULL = b"null"
_ENCODER = msgspec.json.Encoder()
_MESSAGE = msgspec.json.Decoder(dict[str, msgspec.Raw])
_TOOL_CALLS = msgspec.json.Decoder(list[dict[str, Any]])


class AgentChoice(msgspec.Struct, frozen=True):
    """One answer as the agent gets it."""

    index: int
    message: msgspec.Raw
    finish_reason: str | None
    logprobs: msgspec.Raw


class AgentReply(msgspec.Struct, frozen=True):
    """A chat completion as the agent gets it."""

    id: str
    created: int
    model: str
    choices: list[AgentChoice]
    usage: msgspec.Raw
    system_fingerprint: str | None
    service_tier: str | None
    object: str = "chat.completion"


def event_stream(reply: AgentReply, *, include_usage: bool) -> bytes:
    """The whole stream, `[DONE]` included.

    Where no usage was asked for, the last chunk has it beside its choice: clients stop asking when the base
    URL is not the vendor's, and some count by it all the same.
    """
    head: dict[str, Any] = {
        "id": reply.id,
        "object": "chat.completion.chunk",
        "created": reply.created,
        "model": reply.model,
        "system_fingerprint": reply.system_fingerprint,
    }
    tail = {"usage": None} if include_usage else {}
    chunks = [{**head, "choices": [part], **tail} for one in reply.choices for part in _parts(one)]
    if include_usage:
        chunks.append({**head, "choices": [], "usage": reply.usage})
    else:
        chunks[-1]["usage"] = reply.usage
    return b"".join(event(chunk) for chunk in chunks) + b"data: [DONE]\n\n"


def with_custom_calls(message: msgspec.Raw, names: frozenset[str]) -> msgspec.Raw:
    """An answer in which calls of these functions are calls of custom tools."""
    fields = _MESSAGE.decode(message)
    if "tool_calls" not in fields or bytes(fields["tool_calls"]) == _NULL:
        return message
    calls = [custom_call(call, names) for call in _TOOL_CALLS.decode(fields["tool_calls"])]
    return msgspec.Raw(_ENCODER.encode({**fields, "tool_calls": calls}))


def event(chunk: dict[str, Any]) -> bytes:
    """A chunk in its stream."""
    return b"data: %s\n\n" % _ENCODER.encode(chunk)


def _parts(choice: AgentChoice) -> list[dict[str, Any]]:
    """The `choices` entries of one answer's chunks: role, text, tool calls, finish."""
    decoded = _MESSAGE.decode(choice.message)
    message = {name: raw for name, raw in decoded.items() if bytes(raw) != _NULL}
    role = message.pop("role", msgspec.Raw(b'"assistant"'))
    calls = _TOOL_CALLS.decode(message.pop("tool_calls", b"[]"))
    opening = "" if "content" in message else None
    deltas: list[dict[str, Any]] = [{"role": role, "content": opening}]
    deltas += [{name: raw} for name, raw in message.items()]
    deltas += [delta for index, call in enumerate(calls) for delta in _call_deltas(index, call)]
    parts: list[dict[str, Any]] = [
        {"index": choice.index, "delta": delta, "logprobs": None, "finish_reason": None}
        for delta in deltas
    ]
    parts[min(1, len(parts) - 1)]["logprobs"] = choice.logprobs
    parts.append({"index": choice.index, "delta": {}, "finish_reason": choice.finish_reason})
    return parts


def _call_deltas(index: int, call: dict[str, Any]) -> list[dict[str, Any]]:
    """A tool call as two chunks: what it is, then its arguments (clients append those)."""
    kind, name = ("custom", "input") if "custom" in call else ("function", "arguments")
    inside: dict[str, Any] = dict(call.get(kind) or {})
    arguments = inside.pop(name, "")
    opening = {**call, "index": index, kind: {**inside, name: ""}}
    return [
        {"tool_calls": [opening]},
        {"tool_calls": [{"index": index, kind: {name: arguments}}]},
    ]
