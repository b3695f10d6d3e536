"""Chat completions that are not in the engine's form yet: custom tools and their calls, allowed tools.

Invariant: what has none of them keeps its bytes.
"""

from __future__ import annotations

import re
from typing import Any, cast

import msgspec

from lightningrl.conversation.malformed import Malformed, Object, objects, text_field, unknown_value
from lightningrl.conversation.order import is_empty_answer, without_empty_end
from lightningrl.conversation.rewriting.fields import (
    MESSAGES,
    Fields,
    messages_of,
    raw,
    with_messages,
)
from lightningrl.conversation.tools.choice import only
from lightningrl.conversation.tools.freeform import arguments_of, custom_tool, input_of

PARTS = (
    "text",
    "input_text",
    "output_text",
    "refusal",
    "thinking",
    "reasoning",
    "image",
    "image_url",
    "input_image",
    "image_embeds",
    "audio",
    "audio_url",
    "input_audio",
    "audio_embeds",
    "video",
    "video_url",
    "file",
)
"""Types of content parts that engines know; what one does not take, it refuses by name."""

_CUSTOM = b'"custom"'
_TOOLS, _CHOICE = "tools", "tool_choice"
_IN_PARTS = re.compile(rb'"content"\s*:\s*\[')


class _Part(msgspec.Struct, gc=False):
    type: str | None = None


class _Message(msgspec.Struct, gc=False):
    content: str | list[str | _Part] | None = None


_CONTENTS = msgspec.json.Decoder(list[_Message])
_ANY: msgspec.json.Decoder[Any] = msgspec.json.Decoder()


def chat_request(fields: Fields) -> Fields:
    """The request as engines know it.

    Raises:
        Malformed: a content part is of an unknown type, or a custom tool, a call of one or a choice is malformed.
    """
    if MESSAGES in fields:
        fields = _without_empty_end(_with_functions_called(fields))
        _check_parts(fields[MESSAGES])
    tools, choice = fields.get(_TOOLS), fields.get(_CHOICE)
    if tools is not None and _CUSTOM in bytes(tools):
        fields = {**fields, _TOOLS: raw(_functions(_decoded(tools, _TOOLS)))}
    if choice is not None and bytes(choice)[:1] == b"{":
        fields = _chosen(fields, _decoded(choice, _CHOICE))
    return fields


def messages_in(messages: list[Any]) -> list[Any]:
    """Decoded messages of a request that engines were asked, as `chat_request` reads them.

    Raises:
        Malformed: a call of a custom tool is malformed.
    """
    return without_empty_end([_called(one, place) for place, one in enumerate(messages)])


def custom_names(fields: Fields) -> frozenset[str]:
    """The names of the custom tools that a request declares, which `chat_request` has read."""
    tools = fields.get(_TOOLS)
    if tools is None or _CUSTOM not in bytes(tools):
        return frozenset()
    return frozenset(
        cast("str", tool["custom"]["name"])
        for tool in objects(_decoded(tools, _TOOLS), _TOOLS)
        if tool.get("type") == "custom"
    )


def custom_call(call: Object, names: frozenset[str]) -> Object:
    """A tool call of an answer in the form of its tool; as it is where its arguments are not one text."""
    function = call.get("function") or {}
    name = function.get("name")
    text = input_of(function.get("arguments")) if name in names else None
    if text is None:
        return call
    kept = {one: value for one, value in call.items() if one != "function"}
    return {**kept, "type": "custom", "custom": {"name": name, "input": text}}


def _decoded(given: msgspec.Raw, where: str) -> Any:
    try:
        return _ANY.decode(given)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Malformed(f"'{where}' can't be read: {error}", param=where) from error


def _functions(tools: Any) -> Any:
    return [
        _function(tool, f"tools[{place}]") if tool.get("type") == "custom" else tool
        for place, tool in enumerate(objects(tools, _TOOLS))
    ]


def _function(tool: Object, where: str) -> dict[str, Any]:
    custom = _inside(tool, "custom", where)
    return custom_tool(text_field(custom, "name", f"{where}.custom"), custom, f"{where}.custom")


def _inside(holder: Object, name: str, where: str) -> Object:
    found = holder.get(name)
    if not isinstance(found, dict):
        path = f"{where}.{name}"
        raise Malformed(f"Missing required parameter: '{path}'.", param=path)
    return cast("Object", found)


def _with_functions_called(fields: Fields) -> Fields:
    """Custom calls of the history as the function calls that they were."""
    if _CUSTOM not in bytes(fields[MESSAGES]):
        return fields
    try:
        messages = messages_of(fields)
    except msgspec.DecodeError:
        return fields  # they are none: the engine says so
    new = [_called_raw(one, place) for place, one in enumerate(messages)]
    return fields if new == messages else with_messages(fields, new)


def _without_empty_end(fields: Fields) -> Fields:
    """An empty answer is a flat object, so what stands behind the last brace tells whether there may be one."""
    text = bytes(fields[MESSAGES])
    if b'"assistant"' not in text[text.rfind(b"{") :]:
        return fields
    try:
        messages = messages_of(fields)
        last = _ANY.decode(messages[-1])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return fields  # they are none: the engine says so
    if len(messages) < 2 or not is_empty_answer(last):
        return fields
    return with_messages(fields, messages[:-1])


def _called_raw(message: msgspec.Raw, place: int) -> msgspec.Raw:
    if _CUSTOM not in bytes(message):
        return message
    read = _decoded(message, f"messages[{place}]")
    new = _called(read, place)
    return message if new is read else raw(new)


def _called(message: Any, place: int) -> Any:
    calls = cast("Object", message).get("tool_calls") if isinstance(message, dict) else None
    if not isinstance(calls, list):
        return message
    where = f"messages[{place}].tool_calls"
    new = [_call(one, f"{where}[{i}]") for i, one in enumerate(cast("list[Any]", calls))]
    return message if new == calls else {**message, "tool_calls": new}


def _call(call: Any, where: str) -> Any:
    if not isinstance(call, dict) or cast("Object", call).get("type") != "custom":
        return cast("Any", call)
    custom = _inside(cast("Object", call), "custom", where)
    name, text = (text_field(custom, one, f"{where}.custom") for one in ("name", "input"))
    kept = {one: value for one, value in cast("Object", call).items() if one != "custom"}
    return {
        **kept,
        "type": "function",
        "function": {"name": name, "arguments": arguments_of(text)},
    }


def _chosen(fields: Fields, choice: Object) -> Fields:
    """A choice of a custom tool, or of some tools alone, as engines know it."""
    match choice.get("type"):
        case "custom":
            custom = _inside(choice, "custom", _CHOICE)
            name = text_field(custom, "name", f"{_CHOICE}.custom")
            return {**fields, _CHOICE: raw({"type": "function", "function": {"name": name}})}
        case "allowed_tools":
            allowed = _inside(choice, "allowed_tools", _CHOICE)
            where = f"{_CHOICE}.allowed_tools"
            tools = objects(_decoded(fields.get(_TOOLS, raw([])), _TOOLS) or [], _TOOLS)
            named = objects(allowed.get("tools"), f"{where}.tools")
            names = [_allowed(one, f"{where}.tools[{i}]") for i, one in enumerate(named)]
            for place, tool in enumerate(tools):
                if tool.get("type") == "function":
                    text_field(_inside(tool, "function", f"tools[{place}]"), "name", "tools")
            mode, kept = only(allowed, names, cast("Any", tools), where)
            return {**fields, _CHOICE: raw(mode), _TOOLS: raw(kept)}
        case _:
            return fields


def _allowed(tool: Object, where: str) -> str:
    kind = "custom" if tool.get("type") == "custom" else "function"
    return text_field(_inside(tool, kind, where), "name", f"{where}.{kind}")


def _check_parts(messages: msgspec.Raw) -> None:
    """Refuse parts that nobody knows: an engine could leave out what the model should read."""
    if _IN_PARTS.search(bytes(messages)) is None:
        return
    try:
        read = _CONTENTS.decode(messages)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return  # contents of a wrong type: the engine says so
    for place, message in enumerate(read):
        if isinstance(message.content, list):
            for number, part in enumerate(message.content):
                # Without a type engines tell by the other keys what a part is.
                if isinstance(part, _Part) and part.type not in (None, *PARTS):
                    where = f"messages[{place}].content[{number}].type"
                    raise unknown_value(part.type, PARTS, where)
