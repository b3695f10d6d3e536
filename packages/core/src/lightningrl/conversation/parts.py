"""Which parts of a chat request the trainer can't see: it is given token ids, and no images, sounds or files.

Invariant: pure. A part of a kind that nobody here knows is not seen.
"""

from __future__ import annotations

from typing import Any, cast

import msgspec

from lightningrl.conversation.rewriting.fields import MESSAGES, Fields

_TEXTS = frozenset({"text", "input_text", "output_text", "refusal", "thinking", "reasoning"})
"""Types of parts that a chat template renders to tokens."""
_TEXT_KEYS = frozenset({"text", "refusal", "thinking"})
"""One of them alone makes a part without a type a text."""
_KINDS = (("image", "an image"), ("audio", "audio"), ("video", "a video"), ("file", "a file"))

_NULL = msgspec.Raw(b"null")


class _Message(msgspec.Struct, gc=False):
    content: msgspec.Raw = _NULL
    audio: msgspec.Raw = _NULL
    """An earlier answer that was spoken (OpenAI)."""


_MESSAGES: msgspec.json.Decoder[list[_Message]] = msgspec.json.Decoder(list[_Message])
_ANY: msgspec.json.Decoder[Any] = msgspec.json.Decoder()


def why_unseen(fields: Fields) -> str | None:
    """Why no answer to such a request may be trained. `None`: the trainer sees all of its messages."""
    found = unseen(fields)
    return f"the prompt holds {found}, which the trainer does not see" if found else None


def unseen(fields: Fields) -> str | None:
    """What of a request's messages is no text, in words. `None`: all is text."""
    given = fields.get(MESSAGES)
    if given is None:
        return None
    try:
        messages = _MESSAGES.decode(given)
    except (msgspec.DecodeError, RecursionError):
        return "messages that can't be read"
    for one in messages:
        if bytes(one.audio) != b"null":
            return "audio"
        if bytes(one.content)[:1] in (b"[", b"{") and (found := _unseen_in(one.content)):
            return found
    return None


def _unseen_in(content: msgspec.Raw) -> str | None:
    try:
        read = _ANY.decode(content)
    except (msgspec.DecodeError, RecursionError):
        return "a message that can't be read"
    parts = cast("list[Any]", read) if isinstance(read, list) else [read]
    return next((named for one in parts if (named := _named(one)) is not None), None)


def _named(part: Any) -> str | None:
    """What a part is, where it is no text."""
    if isinstance(part, str):
        return None
    if not isinstance(part, dict):
        return "a part that is no object"
    fields = cast("dict[str, Any]", part)
    kind = fields.get("type")
    if kind in _TEXTS or (kind is None and len(fields) == 1 and fields.keys() <= _TEXT_KEYS):
        return None
    told = (
        str(kind) if kind is not None else " ".join(fields)
    )  # engines tell the type by the key then
    return next((name for word, name in _KINDS if word in told), f"a part of type {kind!r:.40}")
