"""`tool_choice: allowed_tools`: the engine is given the allowed tools alone."""

from __future__ import annotations

from collections.abc import Sequence

from lightningrl.conversation.malformed import Malformed, Object, unknown_value
from lightningrl.conversation.tools.freeform import ChatTool

_MODES = ("auto", "required")


def only(
    allowed: Object, names: Sequence[str], tools: list[ChatTool], where: str
) -> tuple[str, list[ChatTool]]:
    """The choice that is left, and the allowed ones of the tools, in the order of their declaration.

    Raises:
        Malformed: the mode is unknown, or an allowed function is not declared.
    """
    mode = allowed.get("mode")
    if mode not in _MODES:
        raise unknown_value(mode, _MODES, f"{where}.mode")
    given = [tool["function"]["name"] for tool in tools if tool.get("type") == "function"]
    for name in names:
        if name not in given:
            raise Malformed(
                f"Tool choice '{name}' not found in 'tools' parameter.", param=f"{where}.tools"
            )
    kept = [
        tool
        for tool in tools
        if tool.get("type") != "function" or tool["function"]["name"] in names
    ]
    return mode, kept
