"""Tools of the Responses API that the agent runs: declarations, choices, calls and their outputs.

What the service runs itself is handed on as it was declared: `conversation.rewriting` refuses it, or leaves it out.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, cast

from lightningrl.conversation.malformed import Malformed, Object, objects, text_field
from lightningrl.conversation.tools.choice import only
from lightningrl.conversation.tools.freeform import (
    ChatTool,
    arguments_of,
    custom_tool,
    function_tool,
    input_of,
    object_in,
    object_of,
)

Item = dict[str, Any]

_TEXT: dict[str, Any] = {"type": "string"}
_TEXTS: dict[str, Any] = {"type": "array", "items": _TEXT}
_COUNT: dict[str, Any] = {"type": "integer"}

_BUILT_IN: Mapping[str, ChatTool] = {
    "local_shell": function_tool(
        "local_shell",
        "Runs one program on the user's machine.",
        object_of(
            {
                "command": {**_TEXTS, "description": "The program and its arguments."},
                "working_directory": _TEXT,
                "timeout_ms": _COUNT,
                "env": {"type": "object", "additionalProperties": _TEXT},
                "user": _TEXT,
            },
            ["command"],
        ),
    ),
    "shell": function_tool(
        "shell",
        "Runs commands in a shell on the user's machine.",
        object_of(
            {"commands": _TEXTS, "timeout_ms": _COUNT, "max_output_length": _COUNT}, ["commands"]
        ),
    ),
    "apply_patch": function_tool(
        "apply_patch",
        "Creates, changes or deletes one file.",
        object_of(
            {
                "type": {"type": "string", "enum": ["create_file", "update_file", "delete_file"]},
                "path": _TEXT,
                "diff": {
                    **_TEXT,
                    "description": "The file's lines after `+`, or hunks after `@@`.",
                },
            },
            ["type", "path"],
        ),
    ),
}
"""Type of a tool that has a schema of its own -> the function; its name is the type."""

CALLS = (
    "custom_tool_call",
    "local_shell_call",
    "shell_call",
    "apply_patch_call",
    "tool_search_call",
)
"""Types of items that are calls in a form of their own."""
OUTPUTS = (
    "custom_tool_call_output",
    "local_shell_call_output",
    "shell_call_output",
    "apply_patch_call_output",
    "tool_search_output",
)
"""Types of items that hold what such calls gave."""
DECLARING = ("additional_tools", "tool_search_output")
"""Types of items that declare tools."""


class Form(NamedTuple):
    """How a call of a function comes back."""

    kind: str
    """Type of the tool."""
    name: str
    namespace: str | None = None


class Declared(NamedTuple):
    """The tools of a request."""

    tools: list[ChatTool]
    forms: dict[str, Form]
    """Name of a function -> its form, of those that are no plain function."""


def declared(tools: Any, items: Iterable[Object]) -> Declared:
    """The tools that a request declares, those of its items among them.

    What is declared again under the same name counts as it was declared last.

    Raises:
        Malformed: a declaration lacks what its type needs.
    """
    found: dict[str, ChatTool] = {}
    forms: dict[str, Form] = {}
    for place, tool in enumerate(objects(tools or [], "tools")):
        _declare(tool, f"tools[{place}]", found, forms)
    for place, item in enumerate(items):
        if item.get("type") in DECLARING:
            where = f"input[{place}].tools"
            for number, tool in enumerate(objects(item.get("tools") or [], where)):
                _declare(tool, f"{where}[{number}]", found, forms)
    return Declared(list(found.values()), forms)


def _declare(
    tool: Object, where: str, found: dict[str, ChatTool], forms: dict[str, Form], of: str = ""
) -> None:
    """Add one declaration; `of`: the namespace that it stands in."""
    kind = tool.get("type")
    match kind:
        case "function" | "custom":
            name = text_field(tool, "name", where)
            key = qualified(name, of)
            made = _function(tool, key) if kind == "function" else custom_tool(key, tool, where)
            form = Form(kind, name, of or None)
        case "namespace" if not of:
            _declare_space(tool, where, found, forms)
            return
        case "tool_search" if tool.get("execution") == "client":
            key, form = "tool_search", Form("tool_search", "tool_search")
            made = function_tool(key, tool.get("description"), tool.get("parameters") or _ANYTHING)
        case "local_shell" | "shell" | "apply_patch" if not _is_hosted(tool):
            key, form, made = kind, Form(kind, kind), _BUILT_IN[kind]
        case _:
            key, form, made = f"{where}: not a function", None, dict(tool)
    found[key] = made
    forms.pop(key, None)
    if form is not None and form != Form("function", key):
        forms[key] = form


_ANYTHING = object_of({}, [])


def _is_hosted(tool: Object) -> bool:
    """Whether a shell is in a container of the service's."""
    place = tool.get("environment")
    kind = cast("Object", place).get("type") if isinstance(place, dict) else None
    return isinstance(kind, str) and kind.startswith("container")


def _function(tool: Object, name: str) -> ChatTool:
    given = {one: tool[one] for one in _OF_FUNCTIONS if tool.get(one) is not None}
    return {"type": "function", "function": {"name": name, **given}}


_OF_FUNCTIONS = ("description", "parameters", "strict")


def _declare_space(
    space: Object, where: str, found: dict[str, ChatTool], forms: dict[str, Form]
) -> None:
    """The tools of a namespace; what it says of itself stands before what its first tool does."""
    name = text_field(space, "name", where)
    said = space.get("description")
    for place, tool in enumerate(objects(space.get("tools") or [], f"{where}.tools")):
        told = tool
        if place == 0 and isinstance(said, str) and said:
            own = tool.get("description")
            told = {**tool, "description": f"{said}\n\n{own}" if own else said}
        _declare(told, f"{where}.tools[{place}]", found, forms, name)


def qualified(name: str, namespace: Any) -> str:
    """The name of a function within a namespace; those of Codex may end with the separator."""
    if not isinstance(namespace, str) or not namespace:
        return name
    return namespace + name if namespace.endswith("__") else f"{namespace}__{name}"


def chosen(choice: Object, tools: list[ChatTool]) -> tuple[Any, list[ChatTool]]:
    """A choice of a tool as chat completions have it, and the tools that are left to choose from.

    Raises:
        Malformed: it chooses what can't be declared, or what is not.
    """
    kind = choice.get("type")
    match kind:
        case "function" | "custom":
            return _named(_name_in(choice, "tool_choice")), tools
        case "local_shell" | "shell" | "apply_patch":
            return _named(kind), tools
        case "allowed_tools":
            return only(choice, [*_allowed(choice)], tools, "tool_choice")
        case _:
            raise Malformed(
                f"Tool choice {kind!r} is not supported with this model; choose 'none', 'auto', 'required',"
                " 'allowed_tools', or a tool that the agent runs.",
                param="tool_choice",
                code="unsupported_value",
            )


def _named(name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name}}


def _name_in(holder: Object, where: str) -> str:
    return qualified(text_field(holder, "name", where), holder.get("namespace"))


def _allowed(choice: Object) -> Iterable[str]:
    where = "tool_choice.tools"
    for place, tool in enumerate(objects(choice.get("tools"), where)):
        kind = tool.get("type")
        if isinstance(kind, str) and kind in _BUILT_IN:
            yield kind
        elif kind in ("function", "custom"):
            yield _name_in(tool, f"{where}[{place}]")


# -- calls: from items, and to items -----------------------------------------------------------


def call_of(item: Object, where: str) -> tuple[str, str]:
    """The function that an item calls, and its arguments.

    Raises:
        Malformed: the item lacks what its type needs.
    """
    match item.get("type"):
        case "custom_tool_call":
            return _name_in(item, where), arguments_of(text_field(item, "input", where))
        case "local_shell_call":
            return "local_shell", _arguments(_part(item, "action", where), idle="exec")
        case "shell_call":
            return "shell", _arguments(_part(item, "action", where))
        case "apply_patch_call":
            return "apply_patch", _arguments(_part(item, "operation", where))
        case "tool_search_call":
            return "tool_search", json.dumps(_part(item, "arguments", where), ensure_ascii=False)
        case _:
            return _name_in(item, where), text_field(item, "arguments", where)


def _part(item: Object, name: str, where: str) -> Object:
    found = item.get(name)
    if not isinstance(found, dict):
        raise Malformed(
            f"Invalid type for '{where}.{name}': expected an object.",
            param=f"{where}.{name}",
            code="invalid_type",
        )
    return cast("Object", found)


def _arguments(given: Object, idle: str = "") -> str:
    """What of an action says something; `idle`: a type that says nothing."""
    kept = {
        name: value
        for name, value in given.items()
        if value not in (None, {}) and not (name == "type" and value == idle)
    }
    return json.dumps(kept, ensure_ascii=False)


def own_item(form: Form, item: Item) -> Item:
    """A function call's item in the form of its tool; as it is where its arguments don't fit."""
    arguments = item["arguments"]
    common = {one: item[one] for one in ("id", "call_id", "status")}
    spaced = {} if form.namespace is None else {"namespace": form.namespace}
    if form.kind == "function":
        return {**item, "name": form.name, **spaced}
    if form.kind == "custom":
        text = input_of(arguments)
        if text is None:
            return {**item, "name": form.name, **spaced}
        own = {"type": "custom_tool_call", "name": form.name, "input": text, **spaced}
        return {**common, **own}
    found = object_in(arguments)
    own = None if found is None else _built_in(form.kind, found)
    return item if own is None else {**common, **own}


def _built_in(kind: str, found: dict[str, Any]) -> Item | None:
    """A call of a tool with a schema of its own. `None`: the schema is not kept."""
    if kind == "tool_search":
        return {"type": "tool_search_call", "execution": "client", "arguments": found}
    if kind == "local_shell" and _are_texts(found.get("command")):
        return {"type": "local_shell_call", "action": {"env": {}, **found, "type": "exec"}}
    if kind == "shell" and _are_texts(found.get("commands")):
        limits = {"timeout_ms": None, "max_output_length": None}
        return {"type": "shell_call", "action": {**limits, **found}}
    if kind == "apply_patch" and _is_operation(found):
        return {"type": "apply_patch_call", "operation": found}
    return None


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(one, str) for one in cast("list[Any]", value))


def _is_operation(found: dict[str, Any]) -> bool:
    needed = {
        "create_file": ("path", "diff"),
        "update_file": ("path", "diff"),
        "delete_file": ("path",),
    }
    names = needed.get(found["type"]) if isinstance(found.get("type"), str) else None
    return names is not None and all(isinstance(found.get(name), str) for name in names)


# -- outputs -----------------------------------------------------------------------------------


def output_of(item: Object, where: str) -> tuple[str, Any]:
    """The call that an item answers, and what it gave: text, or what `function_call_output` holds."""
    if item.get("type") == "local_shell_call_output" and "call_id" not in item:
        return text_field(item, "id", where), item.get("output")
    call_id = text_field(item, "call_id", where)
    match item.get("type"):
        case "shell_call_output" if not isinstance(item.get("output"), str):
            runs = objects(item.get("output"), f"{where}.output")
            return call_id, "\n".join(_told(run) for run in runs)
        case "apply_patch_call_output":
            said = item.get("output")
            failed = item.get("status") == "failed"
            told = said if isinstance(said, str) else ""
            if failed:
                return call_id, f"Error: {told}" if told else "Error"
            return call_id, told or "Done."
        case "tool_search_output":
            tools = objects(item.get("tools") or [], f"{where}.tools")
            return call_id, f"Tools that are there now: {', '.join(_names(tools)) or 'none'}."
        case _:
            return call_id, item.get("output")


def _told(run: Object) -> str:
    """What one command wrote, and how it ended."""
    texts = [run.get(name) for name in ("stdout", "stderr")]
    outcome = run.get("outcome")
    ended = cast("Object", outcome) if isinstance(outcome, dict) else {}
    if ended.get("type") == "timeout":
        texts.append("timed out")
    elif ended.get("exit_code") is not None:
        texts.append(f"exit code {ended['exit_code']}")
    return "\n".join(text for text in texts if isinstance(text, str) and text)


def _names(tools: Sequence[Object], of: Any = None) -> Iterable[str]:
    for tool in tools:
        inside = tool.get("tools")
        if tool.get("type") == "namespace" and isinstance(inside, list):
            named = [one for one in cast("list[Any]", inside) if isinstance(one, dict)]
            yield from _names(cast("list[Object]", named), tool.get("name"))
        elif isinstance(tool.get("name"), str):
            yield qualified(tool["name"], of)
