"""Reasoning that a client left out of the answers that it sends back is put back, as it was recorded.

Invariants:
- An answer's reasoning goes only where its conversation goes on: the request begins with the messages that it answered
  and then with the answer. Of answers that are alike there the first one's counts, so what stands in a prompt once stays.
- A rewrite names the calls whose reasoning it put back; with those calls it says what was sent.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from hashlib import blake2b
from typing import Any, NamedTuple

import msgspec

from lightningrl.conversation.malformed import Malformed
from lightningrl.conversation.rewriting.fields import (
    MESSAGES,
    Fields,
    messages_of,
    opened,
    raw,
    roles_of,
    with_messages,
)
from lightningrl.conversation.said import sign
from lightningrl.schema import CallEvent

KEYS = ("reasoning", "reasoning_content")
"""What engines call it, in an answer as in a message that is sent back."""

REASONING_RESTORED = "reasoning_restored"
"""Answers that were sent back without their reasoning have it again. `by` says whose: `more` has for each of them its
place among the messages of the assistant, the call that gave it, and the place among that call's choices; `as` names
a call whose own prompt had restored the same before those."""

_MORE, _AS = "more", "as"

_Whose = tuple[str, int]
"""A call's id, and a place among its choices."""
_Place = list[Any]
"""[place among the messages of the assistant, call, choice]: JSON."""

_ASSISTANT = "assistant"
_ANSWERED = b'"assistant"'
_BYTES = 16


class _Thought(NamedTuple):
    key: str
    text: str


class Thoughts:
    """The reasoning of the answers that one agent got in an attempt."""

    def __init__(self) -> None:
        self._known: dict[_Whose, _Thought] = {}
        self._restored: dict[str, Mapping[str, Any] | None] = {}
        """Call -> what was put back in its own prompt."""
        self._ends: dict[bytes, _Whose] = {}
        """Digest of a conversation that ends with an answer -> whose answer it was first."""

    def add(self, call: CallEvent, asked: Fields | None = None) -> None:
        """Take up the next call.

        Args:
            call: any; answers without reasoning are passed over.
            asked: what it asked, to find its answers in later requests (`missing_in`). `None`: there are none to come.
        """
        answers = [json.loads(choice.message or b"{}") for choice in call.choices]
        chain = _chained(messages_of(asked)) if asked is not None and MESSAGES in asked else None
        for place, answer in enumerate(answers):
            key = next((one for one in KEYS if isinstance(answer.get(one), str)), None)
            if key is None or not answer[key]:
                continue
            self._known[call.id, place] = _Thought(key, answer[key])
            if chain is not None:
                end = chain.copy()
                end.update(sign({**answer, "role": _ASSISTANT}))
                self._ends.setdefault(end.digest(), (call.id, place))
        restored = (one.by for one in call.rewrites if one.name == REASONING_RESTORED)
        self._restored[call.id] = next(restored, None)

    def missing_in(self, fields: Fields) -> dict[str, Any] | None:
        """Whose reasoning a request lacks, as `REASONING_RESTORED` says it. `None`: nobody's."""
        found: list[_Place] = [
            [place, *whose]
            for place, (message, digest) in enumerate(_answers(fields) if self._ends else ())
            if (whose := self._ends.get(digest)) is not None and not _thinks(message)
        ]
        if not found:
            return None
        *before, last = found
        if before and self._places(self._restored[last[1]]) == before:
            return {_AS: last[1], _MORE: [last]}
        return {_MORE: found}

    def put_back(self, fields: Fields, by: Mapping[str, Any]) -> Fields:
        """The request with the reasoning of which `by` says whose it is.

        Raises:
            Malformed: a call was not added that it names, or a message can't be read.
        """
        messages = messages_of(fields)
        answers = [at for at, role in enumerate(roles_of(fields) or ()) if role == _ASSISTANT]
        for place, call_id, choice in self._places(by):
            if (thought := self._known.get((call_id, choice))) is None:
                raise _unknown(call_id)
            at = answers[place]
            messages[at] = raw({**opened(messages[at], at), thought.key: thought.text})
        return with_messages(fields, messages)

    def _places(self, by: Mapping[str, Any] | None) -> list[_Place]:
        """All that `by` put back, in order."""
        parts: list[list[_Place]] = []
        while by is not None:
            parts.append(by[_MORE])
            if (like := by.get(_AS)) is None:
                break
            if like not in self._restored:
                raise _unknown(like)
            by = self._restored[like]
        return [list(place) for part in reversed(parts) for place in part]


def may_lack(fields: Fields) -> bool:
    """Whether a request may hold an answer without its reasoning."""
    return MESSAGES in fields and _ANSWERED in bytes(fields[MESSAGES])


def _answers(fields: Fields) -> Iterator[tuple[msgspec.Raw, bytes]]:
    """Each message of the assistant, and the digest of the conversation up to it; none where messages are none."""
    roles = roles_of(fields)
    if roles is None:
        return
    chain = _chained(())
    for role, message in zip(roles, messages_of(fields), strict=True):
        chain.update(_signed(message))
        if role == _ASSISTANT:
            yield message, chain.digest()


def _chained(messages: Iterable[msgspec.Raw]) -> blake2b:
    """A running digest of a conversation."""
    chain = blake2b(digest_size=_BYTES)
    for message in messages:
        chain.update(_signed(message))
    return chain


def _signed(message: msgspec.Raw) -> bytes:
    """What a message says; of one that can't be read its bytes."""
    read = _read(message)
    return sign(read) if read is not None else bytes(message)


def _thinks(message: msgspec.Raw) -> bool:
    read = _read(message) or {}
    return any(read.get(key) for key in KEYS)


def _read(message: msgspec.Raw) -> dict[str, Any] | None:
    try:
        return _MESSAGE.decode(message)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


_MESSAGE: msgspec.json.Decoder[dict[str, Any]] = msgspec.json.Decoder(dict[str, Any])


def _unknown(call_id: str) -> Malformed:
    return Malformed(
        f"The reasoning of call {call_id!r} was put back, and that call is not among those before.",
        param=MESSAGES,
    )
