"""Tools whose input is one text (`custom`): a function with one argument."""

from __future__ import annotations

import json
from typing import Any, cast

import msgspec

from lightningrl.conversation.malformed import Object, text_field

ChatTool = dict[str, Any]
"""A tool as chat completions have it."""

_INPUT = "input"


def function_tool(name: str, description: Any, parameters: Any) -> ChatTool:
    """A function that the engine may call; what it is told of it."""
    function = {"name": name, "description": description, "parameters": parameters}
    kept = {name: value for name, value in function.items() if value is not None}
    return {"type": "function", "function": kept}


def object_of(properties: dict[str, Any], required: list[str]) -> dict[str, Any]:
    """The schema of an object."""
    return {"type": "object", "properties": properties, "required": required}


def custom_tool(name: str, tool: Object, where: str) -> ChatTool:
    """A custom tool as a function.

    Args:
        name: of the function.
        tool: its `description` and `format`; of chat completions a grammar stands in a `grammar` of its own.
        where: its path.

    Raises:
        Malformed: its grammar lacks its text.
    """
    told = [text for text in (tool.get("description"),) if isinstance(text, str) and text]
    form = tool.get("format")
    if isinstance(form, dict) and cast("Object", form).get("type") == "grammar":
        told.append(_grammar(cast("Object", form), f"{where}.format"))
    schema = object_of({_INPUT: {"type": "string", "description": "The whole input."}}, [_INPUT])
    return function_tool(name, "\n\n".join(told) or None, schema)


def _grammar(form: Object, where: str) -> str:
    """The model is told of the grammar; nothing makes it follow it."""
    inner = form.get("grammar")
    grammar = cast("Object", inner) if isinstance(inner, dict) else form
    definition, syntax = (text_field(grammar, one, where) for one in ("definition", "syntax"))
    return f"The input must follow this grammar ({syntax}):\n{definition}"


def arguments_of(text: str) -> str:
    """The arguments of the function call that is a custom call with this input."""
    return json.dumps({_INPUT: text}, ensure_ascii=False)


def input_of(arguments: Any) -> str | None:
    """The inverse. `None`: the arguments are not one text."""
    found = object_in(arguments)
    if found is None or set(found) != {_INPUT} or not isinstance(found[_INPUT], str):
        return None
    return found[_INPUT]


def called(call: Object) -> tuple[Any, Any]:
    """Name and arguments of a tool call: a custom call's are those of the function call that it is to engines.

    Arguments that are one text are spelt in one way, so that a call and what a client made of it are equal.
    """
    custom, function = call.get("custom"), call.get("function")
    if isinstance(custom, dict) and not function:
        name, text = (cast("Object", custom).get(key) for key in ("name", _INPUT))
        return name, arguments_of(text if isinstance(text, str) else "")
    known = cast("Object", function) if isinstance(function, dict) else {}
    arguments = known.get("arguments", "")
    one_text = input_of(arguments)
    return known.get("name"), arguments if one_text is None else arguments_of(one_text)


def object_in(arguments: Any) -> dict[str, Any] | None:
    """The object that a model wrote as arguments. `None`: it wrote none, or one that can't be sent on."""
    try:
        found: Any = msgspec.json.decode(arguments)
    except (ValueError, TypeError, RecursionError):
        return None
    return cast("dict[str, Any]", found) if isinstance(found, dict) else None
