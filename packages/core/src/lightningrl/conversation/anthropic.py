"""Anthropic's messages and chat messages: the same conversation in two forms.

Invariant: an answer's blocks, sent back, become a message with the same text, reasoning and tool calls, so
that the next prompt continues the tokens that the policy sampled.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, cast

import msgspec

from lightningrl.conversation.engine_fields import TEMPLATE_VARIABLES, engine_fields
from lightningrl.conversation.malformed import (
    Malformed,
    Object,
    missing,
    objects,
    text_field,
    unknown_value,
    wrong_type,
)
from lightningrl.conversation.order import results_first, without_empty_end
from lightningrl.conversation.responses import reasoning_of
from lightningrl.conversation.tools.anthropic import built_in

Block = dict[str, Any]
Message = dict[str, Any]

ROLES = ("user", "assistant", "system")
BLOCKS = (
    "text",
    "image",
    "document",
    "search_result",
    "tool_reference",
    "thinking",
    "redacted_thinking",
    "tool_use",
    "tool_result",
)

_UNREADABLE = "INVALID_JSON"
"""The key under which Anthropic's documentation hands on tool arguments that are no JSON object."""


# -- from an answer to blocks ------------------------------------------------------------------


def output_blocks(message: Object) -> list[Block]:
    """The blocks of an answer: its reasoning, its text, its tool calls, each where there is one."""
    blocks: list[Block] = []
    reasoning = reasoning_of(message)
    if reasoning:
        blocks.append({"type": "thinking", "thinking": reasoning, "signature": ""})
    calls = message.get("tool_calls") or ()
    text = message.get("content") or message.get("refusal")
    if text or not calls:
        blocks.append({"type": "text", "text": text or ""})
    return blocks + [_use(call, place) for place, call in enumerate(calls)]


def _use(call: Object, place: int) -> Block:
    function: Object = call.get("function") or {}
    return {
        "type": "tool_use",
        "id": call.get("id") or f"toolu_{place}",
        "name": function.get("name") or "",
        "input": _input(function.get("arguments") or "{}"),
    }


def _input(arguments: str) -> dict[str, Any]:
    """What a model wrote as an object, which the service's clients are then sent.

    msgspec and not `json`, which reads what can't be written again: lone surrogates, NaN, infinities.
    """
    try:
        decoded: Any = msgspec.json.decode(arguments)
    except (ValueError, RecursionError):
        decoded = None
    if isinstance(decoded, dict):
        return cast("dict[str, Any]", decoded)
    return {_UNREADABLE: arguments}


def _arguments(given: Object) -> str:
    """The inverse of `_input`, spaces aside."""
    unreadable = given.get(_UNREADABLE)
    if len(given) == 1 and isinstance(unreadable, str):
        return unreadable
    return json.dumps(given, ensure_ascii=False)


# -- from blocks to messages -------------------------------------------------------------------


def conversation(request: Mapping[str, Any]) -> list[Message]:
    """The conversation that a request asks to continue, `system` first.

    Raises:
        Malformed: a message or block is of an unknown type or lacks what its type needs.
    """
    messages: list[Message] = []
    if request.get("system"):
        system = _content(request["system"], "system")
        messages.append({"role": "system", "content": system})
    if "messages" not in request:
        raise missing("messages")
    for place, message in enumerate(objects(request["messages"], "messages")):
        messages += _messages(message, f"messages.{place}")
    return without_empty_end(results_first(messages))


def _messages(message: Object, where: str) -> list[Message]:
    role = text_field(message, "role", where)
    if role not in ROLES:
        raise unknown_value(role, ROLES, f"{where}.role")
    if "content" not in message:
        raise missing(f"{where}.content")
    content = message["content"]
    if isinstance(content, str):
        return [{"role": role, "content": content}]
    if not isinstance(content, list):
        raise wrong_type(content, "a string or an array of objects", f"{where}.content")
    blocks = objects(content, f"{where}.content")
    if role == "assistant":
        return [_assistant(blocks, f"{where}.content")]
    return _user(role, blocks, f"{where}.content")


def _assistant(blocks: list[Object], where: str) -> Message:
    parts: list[Block] = []
    thoughts: list[str] = []
    calls: list[Block] = []
    for place, block in enumerate(blocks):
        at = f"{where}.{place}"
        match block.get("type"):
            case "thinking":
                thoughts.append(text_field(block, "thinking", at))
            case "redacted_thinking":
                continue  # of another model: nobody here can read it
            case "tool_use":
                calls.append(_call(block, at))
            case _:
                parts += _parts(block, at)
    message: Message = {"role": "assistant", "content": _joined(parts, bool(calls))}
    if thoughts:
        message["reasoning"] = "".join(thoughts)
    if calls:
        message["tool_calls"] = calls
    return message


def _call(block: Object, where: str) -> Block:
    given = block.get("input")
    if not isinstance(given, dict):
        raise wrong_type(given, "an object", f"{where}.input")
    arguments = _arguments(cast("Object", given))
    function = {"name": text_field(block, "name", where), "arguments": arguments}
    return {"id": text_field(block, "id", where), "type": "function", "function": function}


def _user(role: str, blocks: list[Object], where: str) -> list[Message]:
    """Tool results as messages of their own, then what else there is as one message of `role`."""
    messages: list[Message] = []
    parts: list[Block] = []
    for place, block in enumerate(blocks):
        at = f"{where}.{place}"
        if block.get("type") != "tool_result":
            parts += _parts(block, at)
            continue
        call_id = text_field(block, "tool_use_id", at)
        content = _content(block.get("content") or "", f"{at}.content")
        if block.get("is_error"):
            content = _failed(content)
        messages.append({"role": "tool", "tool_call_id": call_id, "content": content})
    if parts or not messages:
        messages.append({"role": role, "content": _joined(parts)})
    return messages


def _failed(content: Any) -> Any:
    """A failed tool's result: chat messages have no place for the flag, so the model reads it."""
    if isinstance(content, str):
        return f"Error: {content}" if content else "Error"
    return [{"type": "text", "text": "Error:"}, *content]


def _content(given: Any, where: str) -> Any:
    if isinstance(given, str):
        return given
    blocks = objects(given, where)
    return _joined(
        [part for place, block in enumerate(blocks) for part in _parts(block, f"{where}.{place}")]
    )


def _joined(parts: list[Block], calls: bool = False) -> Any:
    """Text where there is one text alone, else the parts; nothing beside tool calls is `None`."""
    if not parts:
        return None if calls else ""
    if len(parts) == 1 and parts[0]["type"] == "text":
        return parts[0]["text"]
    return parts


def _parts(block: Object, where: str) -> list[Block]:
    """The parts of a chat message that a block is."""
    match block.get("type"):
        case "text":
            return [_text(text_field(block, "text", where))]
        case "image":
            return [{"type": "image_url", "image_url": {"url": _source(block, where)}}]
        case "document":
            return _document(block, where)
        case "search_result":
            return [_found(block, where)]
        case "tool_reference":
            return [_text(f"The tool {text_field(block, 'tool_name', where)} is there now.")]
        case other:
            raise unknown_value(other, BLOCKS, f"{where}.type")


def _text(text: str) -> Block:
    return {"type": "text", "text": text}


def _found(block: Object, where: str) -> Block:
    """A search result of the agent's own: its title, its source, its texts."""
    lines = [text_field(block, name, where) for name in ("title", "source")]
    for place, part in enumerate(objects(block.get("content"), f"{where}.content")):
        lines.append(text_field(part, "text", f"{where}.content.{place}"))
    return _text("\n".join(lines))


def _document(block: Object, where: str) -> list[Block]:
    """Its title and what is said of it, then what it holds; one text where all of it is text."""
    given = [name for name in ("title", "context") if block.get(name) not in (None, "")]
    parts = [_text(text_field(block, name, where)) for name in given] + _held(block, where)
    if all(part["type"] == "text" for part in parts):
        return [_text("\n".join(part["text"] for part in parts))]
    return parts


def _held(block: Object, where: str) -> list[Block]:
    """What a document's source holds."""
    given, at = block.get("source"), f"{where}.source"
    source = cast("Object", given) if isinstance(given, dict) else {}
    match source.get("type"):
        case "text":
            return [_text(text_field(source, "data", at))]
        case "content" if isinstance(source.get("content"), str):
            return [_text(source["content"])]
        case "content":
            blocks = objects(source.get("content"), f"{at}.content")
            return [
                part
                for place, one in enumerate(blocks)
                for part in _parts(one, f"{at}.content.{place}")
            ]
        case _:
            return [{"type": "file", "file": {"file_data": _source(block, where)}}]


def _source(block: Object, where: str) -> str:
    """What a block holds, as a URL."""
    at = f"{where}.source"
    given = block.get("source")
    if not isinstance(given, dict):
        raise wrong_type(given, "an object", at)
    source = cast("Object", given)
    match source.get("type"):
        case "base64":
            media = text_field(source, "media_type", at)
            return f"data:{media};base64,{text_field(source, 'data', at)}"
        case "url":
            return text_field(source, "url", at)
        case "file":
            raise Malformed(
                f"'{at}': files can't be uploaded here; send the data itself.", param=at
            )
        case other:
            raise unknown_value(other, ("base64", "url", "text", "content"), f"{at}.type")


# -- a request as a chat request ---------------------------------------------------------------

_CHOICES = {"auto": "auto", "any": "required", "none": "none"}


def chat_request(request: Mapping[str, Any]) -> dict[str, Any]:
    """The request as a chat completion; fields that say nothing are not in it.

    Args:
        request: its fields are of the right types.

    Raises:
        Malformed: a message, a block, a tool or a choice is malformed.
    """
    choice = request.get("tool_choice")
    output = request.get("output_config") or {}
    form = output.get("format") or request.get("output_format")
    alone = choice is not None and choice.get("disable_parallel_tool_use")
    fields: dict[str, Any] = {
        **engine_fields(request),
        "model": request.get("model"),
        "messages": conversation(request),
        "max_tokens": request.get("max_tokens"),
        "tools": _tools(request["tools"]) if request.get("tools") else None,
        "tool_choice": _tool_choice(choice) if choice is not None else None,
        "parallel_tool_calls": False if alone else None,
        "temperature": request.get("temperature"),
        "top_p": request.get("top_p"),
        "stop": request.get("stop_sequences") or None,
        "response_format": _response_format(form) if form else None,
        "reasoning_effort": output.get("effort"),
        TEMPLATE_VARIABLES: _template_variables(request),
    }
    return {name: value for name, value in fields.items() if value is not None}


_THINKING = ("enabled", "disabled", "adaptive")


def _template_variables(request: Mapping[str, Any]) -> Any:
    """The engine's own field; where `thinking` says something, that counts."""
    given, thinking = request.get(TEMPLATE_VARIABLES), request.get("thinking")
    if thinking is None:
        return given
    if thinking["type"] not in _THINKING:
        raise unknown_value(thinking["type"], _THINKING, "thinking.type")
    if not isinstance(given, Mapping | None):
        raise wrong_type(given, "an object", TEMPLATE_VARIABLES)
    return {**(given or {}), "enable_thinking": thinking["type"] != "disabled"}


def _tools(tools: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [_tool(tool, f"tools.{place}") for place, tool in enumerate(tools)]


def _tool(tool: Object, where: str) -> dict[str, Any]:
    if tool.get("type") not in (None, "custom"):
        # the service's own go on as they are declared: `rewriting` refuses them, or leaves them out
        return built_in(tool) or dict(tool)
    function = {"name": text_field(tool, "name", where), "parameters": tool.get("input_schema")}
    given = {name: tool[name] for name in ("description", "strict") if tool.get(name) is not None}
    return {"type": "function", "function": {**function, **given}}


def _tool_choice(choice: Object) -> Any:
    kind = choice["type"]
    if kind == "tool":
        if choice.get("name") is None:
            raise Malformed("tool_choice.name: Field required", param="tool_choice.name")
        return {"type": "function", "function": {"name": choice["name"]}}
    if kind not in _CHOICES:
        raise unknown_value(kind, (*_CHOICES, "tool"), "tool_choice.type")
    return _CHOICES[kind]


def _response_format(given: Object) -> dict[str, Any]:
    if given["type"] != "json_schema":
        raise unknown_value(given["type"], ("json_schema",), "output_config.format.type")
    return {"type": "json_schema", "json_schema": {"name": "output", "schema": given["schema"]}}
