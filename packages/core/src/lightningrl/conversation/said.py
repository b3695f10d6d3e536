"""What messages say, whatever form their clients give them: two that say the same may be sent in two forms.

Invariant: pure; reasoning, which many clients leave out, is not among it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from lightningrl.conversation.tools.freeform import called
from lightningrl.schema import CallEvent


class Said(NamedTuple):
    """What a message says, whatever form its client gives it."""

    role: str
    text: str
    tool_calls: tuple[tuple[str, str], ...]
    """Name and arguments of each."""


def said_in(message: Mapping[str, Any]) -> Said:
    """What one message says."""
    calls = message.get("tool_calls") or ()
    functions = [one.get("function") or {} for one in calls if isinstance(one, dict)]
    return Said(
        str(message.get("role")),
        _text(message.get("content")),
        tuple((str(one.get("name")), str(one.get("arguments"))) for one in functions),
    )


def _text(content: Any) -> str:
    """A content's text, in one part or in many."""
    if content is None or isinstance(content, str):
        return content or ""
    parts = content if isinstance(content, list) else [content]
    return "".join(
        str(one["text"]) if isinstance(one, dict) and "text" in one else json.dumps(one)
        for one in parts
    )


def sign(message: Mapping[str, Any]) -> bytes:
    """What a message says and which tool calls it makes or answers, the same in whatever form it is sent back.

    Space around the text, and how a call's arguments are written down as JSON, make no difference.
    """
    calls = message.get("tool_calls")
    made = [
        (one.get("id"), name, _plain(arguments))
        for one in (calls if isinstance(calls, list) else ())
        if isinstance(one, dict)
        for name, arguments in (called(one),)
    ]
    text = _text(message.get("content")).strip()
    said = (str(message.get("role")), text, made, message.get("tool_call_id"))
    return json.dumps(said, sort_keys=True).encode()


def _plain(arguments: Any) -> Any:
    if not isinstance(arguments, str):
        return arguments
    try:
        return json.loads(arguments, parse_float=_number)
    except (ValueError, RecursionError):
        return arguments.strip()


def _number(text: str) -> float:
    """A decimal; a whole one as an integer, as clients in JavaScript write it."""
    number = float(text)
    return int(number) if number.is_integer() else number


def tools_of(call: CallEvent) -> Any:
    """The tools that a call offers, as the agent said them."""
    return json.loads(call.request).get("tools")


def goes_on(
    now: Sequence[Mapping[str, Any]],
    then: Sequence[Mapping[str, Any]],
    answer: Mapping[str, Any],
) -> bool:
    """Whether a conversation begins with what another one said, and then with its answer."""
    earlier = [*map(said_in, then), said_in(answer)]
    return [said_in(one) for one in now[: len(earlier)]] == earlier
