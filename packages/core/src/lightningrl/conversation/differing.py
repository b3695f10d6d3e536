"""Where two conversations, or two texts, begin to differ. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile
from typing import Any

from lightningrl.conversation.said import Said

_LONGEST = 48
"""Characters shown of a text that differs."""
_BEFORE = 24
"""Characters shown of it, at most, before the first that differs."""


def shared(one: Sequence[Any], other: Sequence[Any]) -> int:
    """How many items from the first on are the same in both."""
    pairs = zip(one, other, strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


def name_of(said: Said, place: int) -> str:
    """What a message is called to people; `place` is its index."""
    return (
        "the system prompt"
        if said.role in ("system", "developer")
        else f"message {place + 1} ({said.role})"
    )


def first_difference(then: str, now: str) -> tuple[int, str, str]:
    """The line, and the words of both texts around the first character that differs."""
    at = shared(then, now)
    start = max(then.rfind(" ", 0, at), then.rfind("\n", 0, at), at - _BEFORE - 1) + 1
    return then.count("\n", 0, at) + 1, _words(then, start, at), _words(now, start, at)


def _words(text: str, start: int, at: int) -> str:
    """From `start` to the end of the word at `at`."""
    rest = text[at : start + _LONGEST]
    return text[start:at] + (rest.split(maxsplit=1)[0] if rest[:1].strip() else rest[:1])
