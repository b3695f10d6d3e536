"""Which call continues which, read from the messages that the gateway recorded.

Messages, not token ids: a template that renders history anew changes ids and not messages. Invariant:
a call continues another one only if its messages begin with that call's messages and its answer.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from lightningrl.conversation.history import Recorded
from lightningrl.conversation.malformed import Malformed
from lightningrl.conversation.order import is_empty_answer
from lightningrl.conversation.tools.freeform import called
from lightningrl.experience.transition import Transition
from lightningrl.schema import Dialect

_NOTHING = b""
_SYSTEM = frozenset({"system", "developer"})


@dataclass(frozen=True)
class Message:
    """One message of a request."""

    role: str
    identity: bytes
    """Digest of what makes it this message; of an assistant's its text and tool calls, without ids."""
    content: Any
    """As the request has it: a text, a list of parts, or `None`."""
    tool: tuple[str, str] = ("", "")
    """Of a tool's message the name and canonical arguments of the call that it answers."""


@dataclass(frozen=True)
class Turn:
    """One decision's place in its conversation."""

    continues: int | None
    """Index, within the member's decisions, of the one that it continues. `None`: it begins one."""
    observed: tuple[Message, ...]
    """The messages of others since the call that it continues; all of them where it begins one."""
    system: tuple[Message, ...]
    """System and developer messages."""
    tools: bytes
    """Digest of the tool schemas."""
    state: str | None
    """Key of the state, as the agent said. `None`: the messages tell it."""
    rewritten: bool
    """It begins a conversation, and yet its messages hold answers."""
    action: bytes
    """Digest of the tool calls with canonical arguments; without any, of the sampled tokens."""


class _Request(msgspec.Struct):
    messages: list[msgspec.Raw] = []  # of chat completions; other dialects are read as these
    tools: msgspec.Raw = msgspec.Raw(b"")


_request = msgspec.json.Decoder(_Request)


class Conversations:
    """Reads members' conversations; messages that were seen before are not read again."""

    def __init__(self) -> None:
        self._seen: dict[bytes, tuple[str, bytes, dict[str, Any]]] = {}

    def read(self, decided: Sequence[Transition]) -> list[Turn]:
        """One `Turn` per decision of one member, in order."""
        ends: dict[bytes, int] = {}
        """Digest of a conversation, answer included -> the latest decision that it ended in."""
        turns: list[Turn] = []
        recorded = Recorded()
        for index, one in enumerate(decided):
            messages, tools = self._messages(one, recorded)
            continues, start, chain = _follow(messages, ends)
            turns.append(_turn(messages, tools, continues, start, one))
            answer = _answer(one)
            if answer is not None:
                ends[_extended(chain, _identity(answer))] = index
        return turns

    def _messages(self, one: Transition, recorded: Recorded) -> tuple[list[Message], bytes]:
        """The call's messages, and a digest of its tool schemas."""
        raw, tools = _raw_messages(one, recorded)
        asked: dict[str, tuple[str, str]] = {}
        messages: list[Message] = []
        for text in raw:
            role, identity, plain = self._plain(text)
            for call in plain.get("tool_calls") or ():
                asked[str(call.get("id"))] = _tool_call(call)
            tool = asked.get(str(plain.get("tool_call_id")), (str(plain.get("name") or ""), ""))
            messages.append(Message(role, identity, plain.get("content"), tool))
        return messages or [_opaque(one)], _digest(tools) if tools else _NOTHING

    def _plain(self, raw: bytes) -> tuple[str, bytes, dict[str, Any]]:
        found = self._seen.get(raw)
        if found is None:
            plain: Any = msgspec.json.decode(raw)
            plain = plain if isinstance(plain, dict) else {"role": "", "content": plain}
            found = (str(plain.get("role")), _identity(plain), plain)
            self._seen[raw] = found
        return found


def _raw_messages(one: Transition, recorded: Recorded) -> tuple[list[bytes], bytes]:
    """Each message and the tool schemas as JSON; no messages where the request isn't whole."""
    call = one.call
    if call is None or not call.request:
        return [], _NOTHING
    try:
        request = _request.decode(call.request)
        if call.dialect is Dialect.CHAT and not call.rewrites:
            recorded.add(call)
            return _without_empty_end([bytes(raw) for raw in request.messages]), bytes(
                request.tools
            )
        plain = recorded.messages(call)
        recorded.add(call)
    except (msgspec.DecodeError, Malformed):
        return [], _NOTHING
    return [msgspec.json.encode(message) for message in plain], bytes(request.tools)


def _without_empty_end(raw: list[bytes]) -> list[bytes]:
    """As `order.without_empty_end`, which engines were asked by; the rest is not decoded for it."""
    if len(raw) > 1 and b'"assistant"' in raw[-1] and is_empty_answer(msgspec.json.decode(raw[-1])):
        return raw[:-1]
    return raw


def _follow(messages: Sequence[Message], ends: dict[bytes, int]) -> tuple[int | None, int, bytes]:
    """The decision continued, where its conversation ends, and the digest of all messages."""
    continues, start, chain = None, 0, _NOTHING
    for place, message in enumerate(messages, start=1):
        chain = _extended(chain, message.identity)
        if chain in ends:
            continues, start = ends[chain], place
    return continues, start, chain


def _turn(
    messages: Sequence[Message], tools: bytes, continues: int | None, start: int, one: Transition
) -> Turn:
    return Turn(
        continues=continues,
        observed=tuple(
            message
            for message in messages[start:]
            if message.role != "assistant" and message.role not in _SYSTEM
        ),
        system=tuple(message for message in messages if message.role in _SYSTEM),
        tools=tools,
        state=None if one.call is None else one.call.state,
        rewritten=continues is None and any(m.role == "assistant" for m in messages),
        action=_action(one),
    )


def _opaque(one: Transition) -> Message:
    """What stands for a request without messages: its prompt, token by token."""
    return Message("user", _digest(one.prompt_bytes), one.prompt_bytes.hex())


def _answer(one: Transition) -> dict[str, Any] | None:
    choice = one.choice
    if choice is None or not choice.message:
        return None
    plain = msgspec.json.decode(choice.message)
    return {"role": "assistant", **plain} if isinstance(plain, dict) else None


def _action(one: Transition) -> bytes:
    calls = (_answer(one) or {}).get("tool_calls")
    if calls:
        return _digest(json.dumps([_tool_call(call) for call in calls]).encode())
    return _digest(one.token_bytes)


def _tool_call(call: dict[str, Any]) -> tuple[str, str]:
    """Name and canonical arguments; arguments that are no JSON stay as they are."""
    name, arguments = called(call)
    return str(name), canonical_json(arguments)


def canonical_json(text: Any) -> str:
    """JSON with sorted keys and without spaces; a text that is no JSON unchanged."""
    try:
        plain = json.loads(text) if isinstance(text, str) else text
        return json.dumps(plain, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    except (ValueError, RecursionError):
        return str(text)


def _identity(plain: dict[str, Any]) -> bytes:
    if plain.get("role") == "assistant":
        calls = [_tool_call(call) for call in plain.get("tool_calls") or ()]
        return _digest(json.dumps([_text(plain.get("content")), calls]).encode())
    kept = {key: value for key, value in plain.items() if value is not None}
    return _digest(canonical_json(kept).encode())


def _text(content: Any) -> Any:
    """An answer's text: SDKs send it back as a text, as one text part, or as nothing."""
    if isinstance(content, list):
        texts = [part.get("text") if isinstance(part, dict) else part for part in content]
        known = [text for text in texts if isinstance(text, str)]
        return "".join(known) if len(known) == len(texts) else content
    return content or ""


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=16).digest()


def _extended(chain: bytes, identity: bytes) -> bytes:
    return _digest(chain + identity)
