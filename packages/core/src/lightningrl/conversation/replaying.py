"""Which recorded call answers a request that is made again.

Invariants:
- Pure, by what was recorded alone. A request is answered by a call that asked the same, as the agent said it (before
  rewrites), by the same agent; each call answers once, and equal ones answer in the order of their record.
- What matches nothing is never answered by what is like it: it is a divergence, or what comes after the trunk.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict, deque
from collections.abc import Sequence
from datetime import datetime, timedelta
from itertools import takewhile
from typing import Any, NamedTuple

import msgspec

from lightningrl.conversation.history import Recorded
from lightningrl.conversation.rewriting.fields import MESSAGES, Fields
from lightningrl.schema import CallEvent, CallStatus, EventId, StepId

_HOW_SENT = frozenset({"stream", "stream_options"})
"""Fields that say how an answer is sent, not what is asked."""


class Path(NamedTuple):
    """Where in an agent a call was made."""

    within: tuple[str, ...]
    """The agents around it, the outermost first."""
    agent: str | None
    """`None`: nobody said."""


class Divergence(NamedTuple):
    """A request that was not recorded where the trunk has calls left."""

    nearest: EventId | None
    """The call left of the trunk that has most in common with it. `None`: its agent has none left."""
    message: int | None
    """Index of the first message that differs. `None`: the messages are equal, or there is no `nearest`."""
    fields: tuple[str, ...]
    """Names of the fields that differ beside the messages, sorted."""
    tool_call_id: str | None
    """The tool call whose output differs. `None`: what differs first is no tool's output."""


class _Asked(NamedTuple):
    call: CallEvent
    fields: dict[str, Any]


class Trunk:
    """The calls of an attempt that a fork of it is answered from."""

    def __init__(self, calls: Sequence[CallEvent], *, before: datetime | None = None) -> None:
        """Take up an attempt's calls.

        Args:
            calls: all of the attempt, in order of arrival at the store.
            before: only calls that had ended by then answer. `None`: all that were delivered.

        Raises:
            Malformed: one of them refers to a response that is not among them.
        """
        recorded = Recorded()
        self._left: dict[tuple[Path, bytes], deque[_Asked]] = defaultdict(deque)
        self.left = 0
        """Calls that have not answered yet."""
        for call in calls:
            is_past = before is not None and call.at > before
            if call.status is CallStatus.DELIVERED and not is_past:
                asked = _said(recorded.asked(call))
                path = Path(call.within, call.agent)
                self._left[path, _digest(asked)].append(_Asked(call, asked))
                self.left += 1
            recorded.add(call)

    def answer(self, path: Path, request: Fields) -> CallEvent | Divergence | None:
        """The call that answers a request; `None` where none is left: it is to be sampled.

        Args:
            path: where it is made.
            request: the chat request as the agent said it, before rewrites.
        """
        if not self.left:
            return None
        asked = _said(request)
        if same := self._left.get((path, _digest(asked))):
            self.left -= 1
            return same.popleft().call
        return self._divergence(path, asked)

    def _divergence(self, path: Path, asked: dict[str, Any]) -> Divergence:
        own = [one for (other, _), left in self._left.items() if other == path for one in left]
        if not own:
            return Divergence(None, None, (), None)
        now = _messages(asked)
        call, then = max(own, key=lambda one: _shared(_messages(one.fields), now))
        place = _shared(_messages(then), now)
        is_equal = place == len(now) == len(_messages(then))
        names = {*asked, *then} - {MESSAGES}
        differing = tuple(sorted(name for name in names if asked.get(name) != then.get(name)))
        tool = None if is_equal or place == len(now) else _output_of(now[place])
        return Divergence(call.id, None if is_equal else place, differing, tool)


def arrived_at(calls: Sequence[CallEvent], step: StepId) -> datetime:
    """When the request of a step arrived: what had ended by then is its trunk.

    Raises:
        KeyError: no call of it is recorded.
    """
    call = next((one for one in calls if one.step_id == step), None)
    if call is None:
        raise KeyError(step)
    return call.at - timedelta(milliseconds=call.latency_ms)


def _said(request: Fields) -> dict[str, Any]:
    return {
        name: msgspec.json.decode(bytes(value))
        for name, value in request.items()
        if name not in _HOW_SENT
    }


def _digest(asked: dict[str, Any]) -> bytes:
    return hashlib.blake2b(msgspec.json.encode(asked, order="deterministic")).digest()


def _messages(asked: dict[str, Any]) -> list[Any]:
    found = asked.get(MESSAGES)
    return found if isinstance(found, list) else []


def _shared(one: Sequence[Any], other: Sequence[Any]) -> int:
    """How many items from the first on are the same in both."""
    pairs = zip(one, other, strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


def _output_of(message: Any) -> str | None:
    """The tool call that a message is the output of. `None`: of none."""
    is_tool = isinstance(message, dict) and message.get("role") == "tool"
    return message.get("tool_call_id") if is_tool else None
