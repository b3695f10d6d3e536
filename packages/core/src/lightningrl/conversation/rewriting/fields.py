"""A chat request by its undecoded fields, and by its undecoded messages.

Invariant: what is not read keeps its bytes, so that no number, no duplicate and no escape changes on its way.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from lightningrl.conversation.malformed import Malformed

Fields = dict[str, msgspec.Raw]
"""A chat completion request: name -> JSON. Of a completion of a plain text it has no `messages`."""

MESSAGES = "messages"

_ENCODER = msgspec.json.Encoder()
_FIELDS = msgspec.json.Decoder(Fields)
_MESSAGES = msgspec.json.Decoder(list[msgspec.Raw])


class _Role(msgspec.Struct, gc=False):
    role: str


_ROLES = msgspec.json.Decoder(list[_Role])


def raw(value: Any) -> msgspec.Raw:
    """A value as JSON."""
    return msgspec.Raw(_ENCODER.encode(value))


def raw_fields(request: Mapping[str, Any] | bytes) -> Fields:
    """The fields of a request, which may be JSON already."""
    return _FIELDS.decode(request if isinstance(request, bytes) else _ENCODER.encode(request))


def messages_of(fields: Fields) -> list[msgspec.Raw]:
    """The messages, which must be a list."""
    return _MESSAGES.decode(fields[MESSAGES])


def with_messages(fields: Fields, messages: Sequence[msgspec.Raw]) -> Fields:
    """The request with other messages."""
    return {**fields, MESSAGES: raw(messages)}


def roles_of(fields: Fields) -> list[str] | None:
    """The role of each message. `None`: there are no messages, or some that are none; the engine refuses those."""
    if MESSAGES not in fields:
        return None
    try:
        return [one.role for one in _ROLES.decode(fields[MESSAGES])]
    except (msgspec.DecodeError, RecursionError):
        return None


def opened(message: msgspec.Raw, place: int) -> Fields:
    """The fields of a message whose role was read.

    Raises:
        Malformed: it can't be read as a whole.
    """
    return _read(message, place, _FIELDS)


def content_of(message: Fields, place: int) -> Any:
    """What a message says, decoded. `None`: nothing.

    Raises:
        Malformed: it can't be read.
    """
    return _read(message["content"], place, _ANY) if "content" in message else None


_ANY: msgspec.json.Decoder[Any] = msgspec.json.Decoder()


def _read(given: msgspec.Raw, place: int, decoder: msgspec.json.Decoder[Any]) -> Any:
    try:
        return decoder.decode(given)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        where = f"messages[{place}]"
        raise Malformed(f"'{where}' can't be read: {error}", param=where) from error
