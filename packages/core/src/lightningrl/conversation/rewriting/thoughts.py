"""Reasoning that a client left out of the answers that it sends back is put back, as it was recorded.

Invariant: an answer is known by its text and the ids of its tool calls; of several that are alike the first in a
conversation is the first that was given, so what stands in a prompt once stays as it is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any, NamedTuple, cast

import msgspec

from lightningrl.conversation.rewriting.fields import (
    MESSAGES,
    Fields,
    content_of,
    messages_of,
    opened,
    raw,
    roles_of,
    with_messages,
)

KEYS = ("reasoning", "reasoning_content")
"""What engines call it, in an answer as in a message that is sent back."""

_Sign = tuple[str, ...]
"""Text and tool call ids of an answer."""

_ANSWERED = b'"assistant"'


class _Thought(NamedTuple):
    sign: _Sign
    key: str
    text: str


class Thoughts:
    """The reasoning of the answers that one agent got in an attempt, in order of arrival."""

    def __init__(self) -> None:
        self._known: list[_Thought] = []

    def __len__(self) -> int:
        return len(self._known)

    def add(self, answer: Mapping[str, Any]) -> None:
        """Take up the next answer, as a chat message; one without reasoning is passed over."""
        sign = _sign(answer.get("content"), answer.get("tool_calls"))
        key = next((one for one in KEYS if answer.get(one)), None)
        if key is not None and any(sign) and isinstance(answer[key], str):
            self._known.append(_Thought(sign, key, answer[key]))

    def put_back(self, fields: Fields, count: int) -> Fields:
        """The request with the reasoning of the first `count` answers where its messages lack it.

        Raises:
            Malformed: a message can't be read.
        """
        by_sign: dict[_Sign, list[_Thought]] = {}
        for one in self._known[:count]:
            by_sign.setdefault(one.sign, []).append(one)
        roles = roles_of(fields) if by_sign else None
        if roles is None or "assistant" not in roles:
            return fields
        messages, seen = messages_of(fields), Counter[_Sign]()
        new = list(messages)
        for place, role in enumerate(roles):
            if role == "assistant":
                new[place] = _thinking(messages[place], place, by_sign, seen)
        return fields if new == messages else with_messages(fields, new)


def may_lack(fields: Fields) -> bool:
    """Whether a request may hold an answer without its reasoning."""
    return MESSAGES in fields and _ANSWERED in bytes(fields[MESSAGES])


def _thinking(
    message: msgspec.Raw,
    place: int,
    by_sign: Mapping[_Sign, list[_Thought]],
    seen: Counter[_Sign],
) -> msgspec.Raw:
    read = opened(message, place)
    calls = content_of({"content": read["tool_calls"]}, place) if "tool_calls" in read else None
    sign = _sign(content_of(read, place), calls)
    known = by_sign.get(sign)
    if known is None:
        return message
    thought = known[min(seen[sign], len(known) - 1)]
    seen[sign] += 1
    if any(bytes(read[key]) not in (b"null", b'""') for key in KEYS if key in read):
        return message
    return raw({**read, thought.key: thought.text})


def _sign(content: Any, calls: Any) -> _Sign:
    parts = cast("list[Any]", content) if isinstance(content, list) else [content]
    texts = [one.get("text") if isinstance(one, dict) else one for one in parts]
    text = "".join(one for one in texts if isinstance(one, str)).strip()
    given = cast("list[Any]", calls) if isinstance(calls, list) else []
    return (text, *(str(one.get("id")) for one in given if isinstance(one, dict)))
