"""Which recorded call answers a request that is made again.

Invariants:
- Pure, by what was recorded alone. A request is answered by a call that asked the same, as the agent said it (before
  rewrites), by the same agent; each call answers one step, and equal ones answer in the order of their record.
- What matches nothing is never answered by what is like it: it comes after the trunk, or it is a divergence.
"""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from itertools import takewhile
from types import MappingProxyType
from typing import Any, NamedTuple

import msgspec

from lightningrl.conversation.differing import first_difference, name_of, shared
from lightningrl.conversation.history import Recorded
from lightningrl.conversation.rewriting.fields import MESSAGES, Fields
from lightningrl.conversation.rewriting.pins import PIN, masked
from lightningrl.conversation.said import said_in
from lightningrl.schema import (
    SAID,
    CallEvent,
    CallStatus,
    Cause,
    Choice,
    Diverged,
    EventId,
    ReplayOf,
    StepId,
)
from lightningrl.user_input.patterns import compiled

_HOW_SENT = frozenset({"stream", "stream_options"})
"""Fields that say how an answer is sent, not what is asked."""
_TIME = re.compile(r"\d{1,2}:\d{2}|\d{4}-\d{2}-\d{2}|\b1\d{9}(\d{3})?\b")
"""A clock's time, a date, or seconds or milliseconds since 1970."""
_PLAIN = frozenset({"role", "content", "tool_call_id", "name"})
"""Fields of a message whose words are all that it says."""
_RANDOM = re.compile(r"[0-9a-f]{8,}|\d\.\d{4,}|\d{5,}", re.IGNORECASE)
"""Ids, and numbers that are no counts."""


class Path(NamedTuple):
    """Where in an agent a call was made."""

    within: tuple[str, ...]
    """The agents around it, the outermost first."""
    agent: str | None
    """`None`: nobody said."""


class _Asked(NamedTuple):
    call: CallEvent
    path: Path
    fields: dict[str, Any]
    origin: ReplayOf


_Key = tuple[Path, bytes]


class Trunk:
    """The calls of an attempt that another one is answered from."""

    def __init__(
        self,
        calls: Sequence[CallEvent],
        *,
        before: datetime | None = None,
        say: tuple[StepId, Mapping[str, Any]] | None = None,
        whole: bool = False,
        pin: Sequence[str] = (),
    ) -> None:
        """Take up an attempt's calls.

        Args:
            calls: all of the attempt, in order of arrival at the store. Of those of one step the last delivered counts.
            before: only calls that had ended by then answer. `None`: all that were delivered.
            say: a step that answers as well, and the message that is its answer.
            whole: whether a request after the last call is a divergence.
            pin: regular expressions of texts that may differ before a conversation's first answer.

        Raises:
            Malformed: one of them refers to a response that is not among them.
        """
        self._pin = compiled(pin, key=PIN)
        self._whole = whole
        self._by_key: dict[_Key, list[_Asked]] = defaultdict(list)
        self._all: list[_Asked] = []
        self._failed: dict[_Key, CallEvent] = {}
        self._beyond: set[_Key] = set()
        self._taken: dict[ReplayOf, StepId] = {}
        """Calls whose answers are under way -> the step that gets each."""
        last = {one.step_id: one.id for one in calls if one.status is CallStatus.DELIVERED}
        recorded = Recorded()
        for call in calls:
            self._take_up(recorded, call, last, before, say)
            recorded.add(call)

    def _take_up(
        self,
        recorded: Recorded,
        call: CallEvent,
        last: Mapping[StepId, EventId],
        before: datetime | None,
        say: tuple[StepId, Mapping[str, Any]] | None,
    ) -> None:
        is_last = last.get(call.step_id, call.id) == call.id
        if not is_last:
            return
        path = Path(call.within, call.agent)
        asked = self._said(recorded.asked(call))
        key = path, _digest(asked)
        is_said = say is not None and call.step_id == say[0]
        if before is not None and call.at > before and not is_said:
            self._beyond.add(key)
        elif call.status is not CallStatus.DELIVERED:
            self._failed[key] = call
        else:
            origin = origin_of(call)
            answer = call if say is None or not is_said else _saying(call, say[1])
            one = _Asked(answer, path, asked, origin)
            self._by_key[key].append(one)
            self._all.append(one)

    def left(self, answered: Mapping[ReplayOf, StepId] = MappingProxyType({})) -> int:
        """How many calls have not answered yet; `answered` are those that had before."""
        return len(self._unused(answered))

    def left_of(self, path: Path, answered: Mapping[ReplayOf, StepId]) -> int:
        """How many of them are an agent's."""
        return sum(one.path == path for one in self._unused(answered))

    def answer(
        self,
        path: Path,
        request: Fields,
        step: StepId,
        *,
        answered: Mapping[ReplayOf, StepId] = MappingProxyType({}),
        sampled: bool = False,
    ) -> CallEvent | Diverged | None:
        """The call that answers a request, which is under way until `release`; `None`: it is to be sampled.

        Args:
            path: where it is made.
            request: the chat request as the agent said it, before rewrites.
            step: which step asks. A step that asks again is answered the same.
            answered: calls that have answered, with the step that each did.
            sampled: whether the attempt has had an answer that was not recorded.
        """
        asked = self._said(request)
        key = path, _digest(asked)
        for one in self._by_key.get(key, ()):
            user = answered.get(one.origin, self._taken.get(one.origin))
            if user is None or user == step:
                self._taken[one.origin] = step
                return one.call
        if key in self._failed:
            return _after_failure(self._failed[key])
        unused = self._unused(answered)
        if not unused:
            return _after_the_end() if self._whole else None
        own = [one for one in unused if one.path == path]
        if key in self._beyond or (sampled and not own):
            return None
        return _divergence(own, asked)

    def release(self, call: CallEvent) -> None:
        """The answer is no longer under way: it is recorded, or it did not reach its agent."""
        self._taken.pop(origin_of(call), None)

    def _unused(self, answered: Mapping[ReplayOf, StepId]) -> list[_Asked]:
        used = answered.keys() | self._taken.keys()
        return [one for one in self._all if one.origin not in used]

    def _said(self, request: Fields) -> dict[str, Any]:
        fields = masked(request, self._pin) if self._pin else request
        return {
            name: msgspec.json.decode(bytes(value))
            for name, value in fields.items()
            if name not in _HOW_SENT
        }


def origin_of(call: CallEvent) -> ReplayOf:
    """Where a call's answer was sampled."""
    return call.replay_of or ReplayOf(call.attempt_id, call.id)


def replay_id(sampled: ReplayOf) -> EventId:
    """The id that a call has within an attempt in which it gives that answer again."""
    digest = hashlib.blake2b(f"{sampled.attempt}/{sampled.event}".encode(), digest_size=16)
    return EventId(f"call-again-{digest.hexdigest()}")


def kept(
    attempts: Sequence[Sequence[CallEvent]], trained: Callable[[CallEvent], bool]
) -> list[CallEvent]:
    """What the next attempt of a rollout is answered from: the most that one of the broken ones had got.

    Up to the first answer that is too old. Where two of them broke after the same answer, that one is sampled anew: it
    may be what breaks them.

    Args:
        attempts: the calls of each that was lost or failed by infrastructure, oldest first.
        trained: whether a call is young enough to be trained.
    """
    delivered = [[one for one in calls if one.status is CallStatus.DELIVERED] for calls in attempts]
    longest = max(reversed(delivered), key=len, default=[])
    if not longest:
        return []
    last = origin_of(longest[-1])
    broke = sum(bool(calls) and origin_of(calls[-1]) == last for calls in delivered)
    return list(takewhile(trained, longest[:-1] if broke > 1 else longest))


def arrived_at(calls: Sequence[CallEvent], step: StepId) -> datetime:
    """When the request of a step arrived: what had ended by then is its trunk.

    Raises:
        KeyError: no call of it is recorded.
    """
    call = next((one for one in calls if one.step_id == step), None)
    if call is None:
        raise KeyError(step)
    return call.at - timedelta(milliseconds=call.latency_ms)


def _saying(call: CallEvent, message: Mapping[str, Any]) -> CallEvent:
    """The call as if its answer had been `message`."""
    said = Choice(
        index=0,
        message=msgspec.json.encode({"role": "assistant", **message}),
        finish_reason="tool_calls" if message.get("tool_calls") else "stop",
        token_ids=b"",
        logprobs=b"",
        untrainable=SAID,
    )
    return msgspec.structs.replace(call, choices=(said,), completion_tokens=0, error=None)


def _digest(asked: dict[str, Any]) -> bytes:
    return hashlib.blake2b(msgspec.json.encode(asked, order="deterministic")).digest()


def _messages(asked: dict[str, Any]) -> list[Any]:
    found = asked.get(MESSAGES)
    return found if isinstance(found, list) else []


# -- what is told of a divergence -------------------------------------------------------------------


def _after_failure(call: CallEvent) -> Diverged:
    told = f"the same request was recorded, and its call {call.status.value}: {call.error}"
    return Diverged(told, Cause.FAILED, call.id)


def _after_the_end() -> Diverged:
    return Diverged("the agent asks for more than was recorded", Cause.MORE)


def _divergence(left: Sequence[_Asked], asked: dict[str, Any]) -> Diverged:
    """Args: `left`, calls of the same agent that have not answered."""
    if not left:
        told = "this agent has no recorded call left, and others have"
        return Diverged(told, Cause.OTHER)
    now = _messages(asked)
    nearest = max(left, key=lambda one: shared(_messages(one.fields), now))
    then = _messages(nearest.fields)
    place = shared(then, now)
    ident = nearest.call.id
    if place == len(now) == len(then):
        names = {*asked, *nearest.fields} - {MESSAGES}
        differing = sorted(name for name in names if asked.get(name) != nearest.fields.get(name))
        return Diverged(f"{', '.join(map(repr, differing))} differ", Cause.OTHER, ident)
    if place == len(now) or place == len(then):
        told = f"the request has {len(now)} messages and was recorded with {len(then)}"
        return Diverged(told, Cause.OTHER, ident)
    is_order = _in_another_order(then, now)
    before, after = _said_in(then[place]), _said_in(now[place])
    tool = _tool_of(now, place)
    line, was, became = first_difference(before, after)
    name = name_of(said_in(now[place]), place) if isinstance(now[place], dict) else f"{place + 1}"
    told = f"line {line} of {name}{f', the output of tool {tool!r},' if tool else ''} differs:"
    cause = Cause.ORDER if is_order else _cause(was, became, is_tool=tool is not None)
    return Diverged(f"{told} {was!r} became {became!r}", cause, ident, tool)


def _said_in(message: Any) -> str:
    """A message as a text to compare: its words where they are all, else its JSON."""
    plain = isinstance(message, dict) and set(message) <= _PLAIN
    if plain and isinstance(message.get("content"), str):
        return message["content"]
    return msgspec.json.encode(message, order="deterministic").decode()


def _in_another_order(then: Sequence[Any], now: Sequence[Any]) -> bool:
    before, after = (
        sorted(msgspec.json.encode(one, order="deterministic") for one in each)
        for each in (then, now)
    )
    return before == after


def _cause(was: str, became: str, *, is_tool: bool) -> Cause:
    if _TIME.search(was) and _TIME.search(became):
        return Cause.TIME
    if _RANDOM.search(was) and _RANDOM.search(became):
        return Cause.RANDOMNESS
    return Cause.SIDE_EFFECT if is_tool else Cause.OTHER


def _tool_of(messages: Sequence[Any], place: int) -> str | None:
    """Name of the tool whose output a message is, by the call that asked for it. `None`: it is of none."""
    message = messages[place]
    if not isinstance(message, dict) or message.get("role") != "tool":
        return None
    for earlier in reversed(messages[:place]):
        calls = earlier.get("tool_calls") if isinstance(earlier, dict) else None
        for call in calls if isinstance(calls, list) else ():
            if isinstance(call, dict) and call.get("id") == message.get("tool_call_id"):
                return str((call.get("function") or {}).get("name"))
    return str(message.get("name") or message.get("tool_call_id"))
