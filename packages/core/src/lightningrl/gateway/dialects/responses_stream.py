"""A finished response as the events of OpenAI's Responses stream, in the service's order.

Invariant: the events add up to exactly the response that a client without `stream` gets; sequence
numbers count from 0 without a gap.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from lightningrl.gateway.asgi import to_json

Event = tuple[str, dict[str, Any]]
"""Type and fields."""


def event_stream(response: Mapping[str, Any]) -> bytes:
    """The whole stream of one response."""
    return b"".join(
        b"event: %s\ndata: %s\n\n"
        % (name.encode(), to_json({"type": name, "sequence_number": number, **fields}))
        for number, (name, fields) in enumerate(_events(response))
    )


def _events(response: Mapping[str, Any]) -> Iterator[Event]:
    opening = {
        **response,
        "status": "in_progress",
        "completed_at": None,
        "incomplete_details": None,
        "output": [],
        "usage": None,
    }
    yield "response.created", {"response": opening}
    yield "response.in_progress", {"response": opening}
    for index, item in enumerate(response["output"]):
        yield from _item_events(index, item)
    yield f"response.{response['status']}", {"response": response}


def _item_events(index: int, item: Mapping[str, Any]) -> Iterator[Event]:
    at = {"output_index": index}
    begun: dict[str, Any] = {**item, "status": "in_progress"}
    if item["type"] == "function_call":
        begun["arguments"] = ""
    else:
        begun["content"] = []
    yield "response.output_item.added", {**at, "item": begun}
    inside = {"item_id": item["id"], **at}
    if item["type"] == "function_call":
        arguments = {"arguments": item["arguments"], "name": item["name"]}
        yield "response.function_call_arguments.delta", {**inside, "delta": item["arguments"]}
        yield "response.function_call_arguments.done", {**inside, **arguments}
    elif item["type"] == "custom_tool_call":
        yield "response.custom_tool_call_input.delta", {**inside, "delta": item["input"]}
        yield "response.custom_tool_call_input.done", {**inside, "input": item["input"]}
    elif "content" in item:
        for place, part in enumerate(item["content"]):
            yield from _part_events({**inside, "content_index": place}, part)
    yield "response.output_item.done", {**at, "item": item}


_TEXTS = {
    "output_text": ("text", "response.output_text"),
    "reasoning_text": ("text", "response.reasoning_text"),
    "refusal": ("refusal", "response.refusal"),
}
"""Part type -> the field that holds its text, and how its events' names begin."""


def _part_events(at: Mapping[str, Any], part: Mapping[str, Any]) -> Iterator[Event]:
    field, name = _TEXTS[part["type"]]
    text = part[field]
    logprobs = {"logprobs": part["logprobs"]} if "logprobs" in part else {}
    empty = {"logprobs": []} if logprobs else {}
    yield "response.content_part.added", {**at, "part": {**part, field: "", **empty}}
    if text:
        yield f"{name}.delta", {**at, "delta": text, **logprobs}
    yield f"{name}.done", {**at, field: text, **logprobs}
    yield "response.content_part.done", {**at, "part": part}
