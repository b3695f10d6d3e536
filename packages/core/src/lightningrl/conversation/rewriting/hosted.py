"""Tools that the real service runs itself: nobody runs them here, so they are refused, or left out.

Invariant: a tool that is no function reaches no engine.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from lightningrl.conversation.malformed import Malformed, wrong_type
from lightningrl.conversation.rewriting.fields import Fields, raw

_TOOLS = "tools"
_FUNCTION = "function"

_SWITCHES = (
    ("web_search", 'Codex: `web_search = "disabled"`; Claude Code: `--disallowedTools WebSearch`'),
    ("web_fetch", "Claude Code: `--disallowedTools WebFetch`"),
    ("image_generation", "Codex: `features.image_generation = false`"),
    ("tool_search", "Claude Code: `ENABLE_TOOL_SEARCH=false`"),
)
"""How a type begins -> how a harness that sends it by itself is told not to."""


_HOSTED = (
    *(begins for begins, _ in _SWITCHES),
    "file_search",
    "code_",
    "mcp",
    "shell",
)
"""How the types begin of what a service runs."""


class _Tool(msgspec.Struct, gc=False):
    type: Any = _FUNCTION


_KINDS = msgspec.json.Decoder(list[_Tool])
_EACH = msgspec.json.Decoder(list[msgspec.Raw])


def kinds(fields: Fields) -> list[str]:
    """The types of the tools that are no functions, each once.

    Raises:
        Malformed: the type of a tool is no text.
    """
    tools = fields.get(_TOOLS)
    if tools is None:
        return []
    return [one for one in dict.fromkeys(_kinds(tools)) if one != _FUNCTION]


def _kinds(tools: msgspec.Raw) -> list[str]:
    try:
        found = [one.type for one in _KINDS.decode(tools)]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return []  # they are no tools: the engine says so
    for place, one in enumerate(found):
        if not isinstance(one, str):
            raise wrong_type(one, "a string", f"{_TOOLS}[{place}].type")
    return found


def refusal(fields: Fields) -> Malformed:
    """The refusal of the first tool that is no function."""
    found = _kinds(fields[_TOOLS])
    place, kind = next((place, one) for place, one in enumerate(found) if one != _FUNCTION)
    shown = kind[:100]
    switch = next((told for begins, told in _SWITCHES if kind.startswith(begins)), "")
    run = kind.startswith(_HOSTED)
    why = (
        "the service would run it, and nobody does here" if run else "its schema is not known here"
    )
    way = "take it out of the agent's tools" if run else "declare it as a function with a schema"
    if switch:
        way = f"switch it off in the agent ({switch})"
    return Malformed(
        f"Tool type '{shown}' is not supported with this model: {why}. "
        f"{way[0].upper()}{way[1:]}, or leave such tools out by `gateway.hosted_tools: drop` in the recipe.",
        param=f"{_TOOLS}[{place}].type",
        code="unsupported_value",
    )


def without(fields: Fields, dropped: Sequence[str]) -> Fields:
    """The request without the tools of these types."""
    tools = fields.get(_TOOLS)
    if tools is None:
        return fields  # the messages of a request, alone
    pairs = zip(_EACH.decode(tools), _kinds(tools), strict=True)
    return {**fields, _TOOLS: raw([tool for tool, kind in pairs if kind not in dropped])}
