"""What messages say, whatever form their clients give them: two that say the same may be sent in two forms.

Invariant: pure; reasoning, which many clients leave out, is not among it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

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
