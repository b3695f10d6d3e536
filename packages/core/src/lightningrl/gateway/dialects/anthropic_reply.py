"""A finished answer as a message of Anthropic's: whole, or as the service's events.

Invariant: the events add up to exactly the message that a client without `stream` gets.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from lightningrl.conversation.anthropic import output_blocks
from lightningrl.conversation.responses import message_id
from lightningrl.gateway.asgi import to_json
from lightningrl.gateway.dialects.engine_reply import EngineChoice, EngineReply, usage_of

_MESSAGE = msgspec.json.Decoder(dict[str, Any])
_REASONS = {
    "length": "max_tokens",
    "tool_calls": "tool_use",
    "content_filter": "refusal",
}
"""Finish reason of a chat completion -> stop reason of a message; any other is `end_turn`."""


def message(
    model: str, reply: EngineReply, step_id: str, *, thinking: bool = True
) -> dict[str, Any]:
    """The answer's first choice as a message.

    Args:
        model: the name that the agent asked for.
        reply: the engine's.
        step_id: of the call.
        thinking: whether the agent asked for thinking; else it is shown none, as by the service.

    Raises:
        ValueError: the engine's message is no message.
    """
    choice = reply.choices[0]
    try:
        said = _MESSAGE.decode(choice.message)
        blocks = [block for block in output_blocks(said) if thinking or block["type"] != "thinking"]
    except (AttributeError, TypeError) as error:
        raise ValueError(f"its message is none: {error}") from error
    reason, sequence = _stop(choice, bool(said.get("refusal")))
    if reason == "end_turn" and any(block["type"] == "tool_use" for block in blocks):
        reason = "tool_use"  # engines end a forced tool call by "stop"
    usage = usage_of(reply)
    return {
        "id": message_id(step_id),
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": blocks,
        "stop_reason": reason,
        "stop_sequence": sequence,
        "usage": {
            "input_tokens": usage.prompt_tokens if usage else 0,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 0,
            "output_tokens": usage.completion_tokens if usage else 0,
        },
    }


def _stop(choice: EngineChoice, refused: bool) -> tuple[str, str | None]:
    """Why the answer ended, and the stop sequence that ended it."""
    if refused:
        return "refusal", None
    if choice.finish_reason == "stop" and choice.stop_text is not None:
        return "stop_sequence", choice.stop_text
    return _REASONS.get(choice.finish_reason or "", "end_turn"), None


def event_stream(whole: Mapping[str, Any]) -> bytes:
    """The whole stream of one message."""
    return b"".join(
        b"event: %s\ndata: %s\n\n" % (event["type"].encode(), to_json(event))
        for event in _events(whole)
    )


def _events(whole: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    usage = {**whole["usage"], "output_tokens": 0}
    opening = {**whole, "content": [], "stop_reason": None, "stop_sequence": None, "usage": usage}
    yield {"type": "message_start", "message": opening}
    for index, block in enumerate(whole["content"]):
        begun, deltas = _pieces(block)
        yield {"type": "content_block_start", "index": index, "content_block": begun}
        if index == 0:
            yield {"type": "ping"}
        for delta in deltas:
            yield {"type": "content_block_delta", "index": index, "delta": delta}
        yield {"type": "content_block_stop", "index": index}
    ending = {name: whole[name] for name in ("stop_reason", "stop_sequence")}
    yield {"type": "message_delta", "delta": ending, "usage": whole["usage"]}
    yield {"type": "message_stop"}


def _pieces(block: Mapping[str, Any]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A block as it begins, and what is added to it."""
    match block["type"]:
        case "tool_use":
            arguments = to_json(block["input"]).decode()
            deltas = [{"type": "input_json_delta", "partial_json": arguments}]
            return {**block, "input": {}}, deltas
        case "thinking":
            deltas = [
                {"type": "thinking_delta", "thinking": block["thinking"]},
                {"type": "signature_delta", "signature": block["signature"]},
            ]
            return {**block, "thinking": ""}, deltas
        case _:
            return {**block, "text": ""}, [{"type": "text_delta", "text": block["text"]}]
