"""Tools that Anthropic's service defines and the client runs: what their schemas say, as functions.

A schema's fields are the service's; what is said of them is our own. Calls come back as `tool_use` like any other.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from lightningrl.conversation.malformed import Object
from lightningrl.conversation.tools.freeform import ChatTool, function_tool, object_of

_TEXT: dict[str, Any] = {"type": "string"}
_COUNT: dict[str, Any] = {"type": "integer"}
_LINES: dict[str, Any] = {
    "type": "array",
    "items": _COUNT,
    "description": "First and last line to view; -1 is the end.",
}
_POINT: dict[str, Any] = {"type": "array", "items": _COUNT, "description": "x and y, in pixels."}

_ACTIONS = (
    "key",
    "type",
    "mouse_move",
    "left_click",
    "left_click_drag",
    "right_click",
    "middle_click",
    "double_click",
    "screenshot",
    "cursor_position",
)
_LATER_ACTIONS = (
    "left_mouse_down",
    "left_mouse_up",
    "scroll",
    "hold_key",
    "wait",
    "triple_click",
)


class _Known(NamedTuple):
    name: str
    told: str
    schema: dict[str, Any]


def _choice(*values: str) -> dict[str, Any]:
    return {"type": "string", "enum": list(values)}


_BASH = object_of(
    {"command": _TEXT, "restart": {"type": "boolean", "description": "Start a new shell."}}, []
)


def _editor(*commands: str, inserts: str) -> dict[str, Any]:
    texts = ("path", "file_text", "old_str", "new_str", inserts)
    fields = dict.fromkeys(texts, _TEXT)
    more = {"insert_line": _COUNT, "view_range": _LINES}
    return object_of({"command": _choice(*commands), **fields, **more}, ["command", "path"])


_EDITS = ("view", "create", "str_replace", "insert")
_EDITOR = "Views, creates and changes text files."
_EDITOR_NAME = "str_replace_based_edit_tool"

_MEMORY_TEXTS = (
    "path",
    "file_text",
    "old_str",
    "new_str",
    "insert_text",
    "old_path",
    "new_path",
)
_MEMORY = object_of(
    {
        "command": _choice(*_EDITS, "delete", "rename"),
        **dict.fromkeys(_MEMORY_TEXTS, _TEXT),
        "insert_line": _COUNT,
        "view_range": _LINES,
    },
    ["command"],
)


def _computer(*actions: str) -> dict[str, Any]:
    fields = {
        "action": _choice(*actions),
        "coordinate": _POINT,
        "start_coordinate": _POINT,
        "text": _TEXT,
        "duration": {"type": "number", "description": "Seconds."},
        "scroll_direction": _choice("up", "down", "left", "right"),
        "scroll_amount": _COUNT,
    }
    if "zoom" in actions:
        fields["region"] = {**_POINT, "description": "Two corners: x0, y0, x1, y1."}
    return object_of(fields, ["action"])


_SCREEN = "Sees the screen, moves the mouse and types."
_KNOWN: Mapping[str, _Known] = {
    **dict.fromkeys(
        ("bash_20241022", "bash_20250124"), _Known("bash", "Runs commands in a shell.", _BASH)
    ),
    **dict.fromkeys(
        ("text_editor_20241022", "text_editor_20250124"),
        _Known("str_replace_editor", _EDITOR, _editor(*_EDITS, "undo_edit", inserts="new_str")),
    ),
    **dict.fromkeys(
        ("text_editor_20250429", "text_editor_20250728"),
        _Known(_EDITOR_NAME, _EDITOR, _editor(*_EDITS, inserts="insert_text")),
    ),
    "memory_20250818": _Known(
        "memory", "Keeps files under /memories from one conversation to the next.", _MEMORY
    ),
    "computer_20241022": _Known("computer", _SCREEN, _computer(*_ACTIONS)),
    "computer_20250124": _Known("computer", _SCREEN, _computer(*_ACTIONS, *_LATER_ACTIONS)),
    "computer_20251124": _Known("computer", _SCREEN, _computer(*_ACTIONS, *_LATER_ACTIONS, "zoom")),
}
"""Type -> the name that the service gives it, and its schema."""
READ = ("display_width_px", "display_height_px", "display_number", "max_characters")
"""Fields of such declarations that are told to the model."""
_SAID = re.compile("_px$")


def built_in(tool: Object) -> ChatTool | None:
    """The function of a tool that the client runs. `None`: it is none of those."""
    known = _KNOWN.get(tool["type"]) if isinstance(tool.get("type"), str) else None
    if known is None:
        return None
    facts = [
        f"{_SAID.sub('', name).replace('_', ' ')}: {tool[name]}"
        for name in READ
        if isinstance(tool.get(name), int)
    ]
    told = f"{known.told} ({', '.join(facts)})" if facts else known.told
    name = tool.get("name")
    return function_tool(name if isinstance(name, str) else known.name, told, known.schema)
