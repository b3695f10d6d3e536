"""The conversation that a call's request holds, as chat messages, whichever dialect it is in.

Invariant: pure functions of recorded calls; what the gateway asked the engine is what they return, recorded
rewrites included (`rewriting`), since the gateway asks by the same functions.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, NamedTuple

import msgspec

from lightningrl.conversation import anthropic, responses
from lightningrl.conversation.rewriting import FORMAT_IN_WORDS, as_held, as_sent, hold_also
from lightningrl.conversation.rewriting.fields import MESSAGES, Fields, raw_fields
from lightningrl.conversation.rewriting.pins import Held
from lightningrl.conversation.rewriting.thoughts import Thoughts
from lightningrl.conversation.tools import chat
from lightningrl.schema import SAID, CallEvent, CallStatus, Dialect, Diverged, ReplayOf, StepId

_REASONING = b'"reasoning'

Message = dict[str, Any]
"""A message as chat completions have it: `role`, `content`, `tool_calls`, ..."""


class Asker(NamedTuple):
    """Whose calls share what is remembered within an attempt."""

    policy: str
    within: tuple[str, ...]
    """The agents around it, the outermost first."""
    agent: str | None
    """`None`: nobody said."""


class Recorded:
    """The calls of one attempt in order of arrival, to read the conversation of a later one."""

    def __init__(self, calls: Iterable[CallEvent] = (), *, to_rewrite: bool = False) -> None:
        """Take up calls.

        Args:
            calls: in order of arrival.
            to_rewrite: whether later requests are still to be rewritten by what was answered. It costs a reading of
                each request whose answer has reasoning.

        Raises:
            Malformed: one of them refers to a response that was not added.
        """
        self.count = 0
        """Calls that were added."""
        self.size = 0
        """About how many bytes of them are held."""
        self._to_rewrite = to_rewrite
        self.responses = responses.Responses()
        """Those among them that a Responses request can refer to."""
        self.held: dict[Asker, Held] = {}
        """Asker -> what its calls hold still."""
        self.thoughts: dict[Asker, Thoughts] = {}
        """Asker -> the reasoning of its answers."""
        self.replays: dict[ReplayOf, StepId] = {}
        """Calls whose answers were given again -> the step that got each."""
        self.is_done: dict[tuple[tuple[str, ...], str | None], bool] = {}
        """The agents around an agent, and itself -> whether what its last answer asks for was done before."""
        self.sampled = 0
        """Calls that were answered, not by a record."""
        self.diverged: Diverged | None = None
        """How the first call differed that is not what was recorded. `None`: none did."""
        for call in calls:
            self.add(call)

    def add(self, call: CallEvent) -> None:
        """Take up the next call.

        Raises:
            Malformed: it refers to a response that was not added.
        """
        self.count += 1
        if call.replay_of is not None:
            self.replays[call.replay_of] = call.step_id
        elif call.status is CallStatus.DELIVERED:
            self.sampled += 1
        self.diverged = self.diverged or call.diverged
        if call.status is CallStatus.DELIVERED:
            said = any(one.untrainable == SAID for one in call.choices)
            self.is_done[call.within, call.agent] = call.replay_of is not None and not said
        if call.rewrites:
            hold_also(self.held.setdefault(asker_of(call), {}), call.rewrites)
        if any(_REASONING in choice.message for choice in call.choices):
            asked = self._followed(call)
            self.size += sum(len(choice.message) for choice in call.choices)
            self.thoughts.setdefault(asker_of(call), Thoughts()).add(call, asked)
        if call.dialect is Dialect.RESPONSES and call.status is CallStatus.DELIVERED:
            self.responses.add(call.step_id, json.loads(call.request), answer_of(call))
            self.size += len(call.request)

    def _followed(self, call: CallEvent) -> Fields | None:
        """What a request must begin with to follow the call's answer. `None`: none will, for all that is asked here."""
        if not self._to_rewrite or call.status is not CallStatus.DELIVERED:
            return None
        return as_held(self.asked(call), call.rewrites)

    def request(self, call: CallEvent) -> Fields:
        """What the engine was asked in `call`, which comes next, as a chat request.

        Of a completion of a plain text it is that. What training asks of every call, and how it is sampled, is
        not among it.

        Raises:
            Malformed: it refers to a response or to reasoning that was not added, or was refused as malformed.
        """
        return self._sent(self.asked(call), call)

    def messages(self, call: CallEvent) -> list[Message]:
        """The messages that the engine was asked to continue in `call`, which comes next.

        Raises:
            Malformed: it refers to a response or to reasoning that was not added, or was refused as malformed.
        """
        if not call.rewrites or call.dialect is Dialect.COMPLETIONS:
            return self._asked_messages(call)
        in_words = any(rewrite.name == FORMAT_IN_WORDS for rewrite in call.rewrites)
        if call.dialect is Dialect.CHAT or in_words:
            asked = self.asked(call)
        else:
            asked = raw_fields({MESSAGES: self._asked_messages(call)})
        sent = self._sent(asked, call)
        return json.loads(bytes(sent[MESSAGES])) or []

    def _sent(self, asked: Fields, call: CallEvent) -> Fields:
        return as_sent(asked, call.rewrites, self.thoughts.get(asker_of(call)))

    def asked(self, call: CallEvent) -> Fields:
        """The chat request as the agent's own body says it, before rewrites; the call comes next.

        Raises:
            Malformed: it refers to a response that was not added, or was refused as malformed.
        """
        return self.chat_request(call.dialect, call.request)

    def chat_request(self, dialect: Dialect, body: bytes) -> Fields:
        """The same of a request that comes next, in whatever dialect.

        Raises:
            Malformed: it refers to a response that was not added, or can't be read.
        """
        match dialect:
            case Dialect.RESPONSES:
                return raw_fields(responses.chat_request(json.loads(body), self.responses))
            case Dialect.ANTHROPIC:
                return raw_fields(anthropic.chat_request(json.loads(body)))
            case Dialect.CHAT:
                return chat.chat_request(raw_fields(body))
            case Dialect.COMPLETIONS:
                return raw_fields(body)

    def _asked_messages(self, call: CallEvent) -> list[Message]:
        request: dict[str, Any] = json.loads(call.request or b"{}")
        match call.dialect:
            case Dialect.RESPONSES:
                return responses.conversation(request, self.responses)
            case Dialect.ANTHROPIC:
                return anthropic.conversation(request)
            case Dialect.COMPLETIONS:
                return [{"role": "user", "content": request.get("prompt")}]
            case Dialect.CHAT:
                return chat.messages_in(request.get("messages") or [])


def asker_of(call: CallEvent) -> Asker:
    """Whose call it is."""
    return Asker(call.policy, call.within, call.agent)


def messages_of(call: CallEvent, earlier: Iterable[CallEvent] = ()) -> list[Message]:
    """The messages that the engine was asked to continue; of a completion its prompt, as one message.

    Args:
        call: Any call.
        earlier: The attempt's calls before it, in order of arrival. Only a Responses request that
            refers to an earlier response, and one in which reasoning was restored, need them.

    Raises:
        Malformed: the request is not whole without `earlier`, or it was refused as malformed.
    """
    return Recorded(earlier).messages(call)


def answer_of(call: CallEvent) -> Message:
    """The assistant's message of the first choice; empty where there is none."""
    return json.loads(call.choices[0].message or b"{}") if call.choices else {}


def is_continuation(call: CallEvent) -> bool:
    """Whether the request follows an answer of the assistant, so that it continues an earlier call."""
    if call.dialect is Dialect.RESPONSES:
        return responses.is_continuation(json.loads(call.request or b"{}"))
    try:
        request = _roles.decode(call.request or b"{}")
    except msgspec.ValidationError:
        return False  # messages that are none: whatever the engine made of them continues nothing
    return any(message.role == "assistant" for message in request.messages or ())


class _Role(msgspec.Struct):
    role: str | None = None


class _Roles(msgspec.Struct):
    messages: list[_Role] | None = None


_roles = msgspec.json.Decoder(_Roles)
"""Reads nothing but the roles: a long conversation is asked for each of its calls."""
