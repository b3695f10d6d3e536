"""Texts that change from call to call though they say the same (a nonce, the time) are held still.

Invariant: what matches a pattern for the n-th time before a conversation's first answer is, in every call of an
agent within an attempt, what it was when it was first sent; so the next prompt continues the last one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, cast

import msgspec

from lightningrl.conversation.rewriting.fields import (
    Fields,
    content_of,
    messages_of,
    opened,
    raw,
    roles_of,
    with_messages,
)
from lightningrl.user_input.patterns import compiled

PIN = "gateway.pin"
"""Key of a recipe: what is held still."""

Held = dict[str, list[str]]
"""Pattern -> the texts that matched it first, in order."""


def held(fields: Fields, patterns: Mapping[str, re.Pattern[str]], before: Held) -> Held:
    """What is held still in a request: what was first sent of each text that matches.

    Args:
        fields: the request.
        patterns: what to hold still.
        before: what was held in the agent's calls before, in the same attempt.

    Raises:
        Malformed: a message can't be read.
    """
    found: Held = {pattern: [] for pattern in patterns}

    def note(text: str) -> str:
        for pattern, compiled_ in patterns.items():
            found[pattern] += (match.group() for match in compiled_.finditer(text))
        return text

    _opening(fields, note)
    still: Held = {}
    for pattern, texts in found.items():
        if texts:
            kept = before.get(pattern, [])[: len(texts)]
            still[pattern] = [*kept, *texts[len(kept) :]]
    return still


def hold(fields: Fields, texts: Held) -> Fields:
    """The request with these texts in place of what matches."""
    for pattern, compiled_ in compiled(list(texts), key=PIN).items():
        left = iter(texts[pattern])
        fields = _opening(
            fields,
            lambda text, compiled_=compiled_, left=left: compiled_.sub(
                lambda match: next(left, match.group()), text
            ),
        )
    return fields


def _opening(fields: Fields, change: Callable[[str], str]) -> Fields:
    """The request with every text before the first answer changed."""
    roles = roles_of(fields)
    if roles is None:
        return fields
    messages = messages_of(fields)
    count = roles.index("assistant") if "assistant" in roles else len(roles)
    new = [_changed(message, place, change) for place, message in enumerate(messages[:count])]
    if new == messages[:count]:
        return fields
    return with_messages(fields, [*new, *messages[count:]])


def _changed(message: msgspec.Raw, place: int, change: Callable[[str], str]) -> msgspec.Raw:
    read = opened(message, place)
    content = content_of(read, place)
    new = _changed_content(content, change)
    return message if new == content else raw({**read, "content": raw(new)})


def _changed_content(content: Any, change: Callable[[str], str]) -> Any:
    if isinstance(content, str):
        return change(content)
    if not isinstance(content, list):
        return content
    return [_changed_part(part, change) for part in cast("list[Any]", content)]


def _changed_part(part: Any, change: Callable[[str], str]) -> Any:
    if not isinstance(part, dict):
        return part
    fields = cast("dict[str, Any]", part)
    text = fields.get("text")
    return {**fields, "text": change(text)} if isinstance(text, str) else fields


def masked(fields: Fields, patterns: Mapping[str, re.Pattern[str]]) -> Fields:
    """The request without what is held still in it: equal for two that differ in nothing else.

    Raises:
        Malformed: a message can't be read.
    """
    for one in patterns.values():
        fields = _opening(fields, lambda text, one=one: one.sub("\0", text))
    return fields
