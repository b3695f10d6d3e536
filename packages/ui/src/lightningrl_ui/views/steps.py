"""An attempt's steps as people read them: who did what, when, and with which text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import msgspec

from lightningrl.cli.tree import answer_parts, as_text
from lightningrl.conversation.history import Asker, Message, Recorded, asker_of
from lightningrl.experience.transition import Transition, unjoined_rewards
from lightningrl.schema import (
    CallEvent,
    LogEvent,
    RewardEvent,
    StepEndEvent,
    StepId,
    StepKind,
)
from lightningrl.traces import AttemptRecord, agent_path, outline


@dataclass(frozen=True)
class MessageView:
    """One message of a conversation."""

    role: str
    text: str


@dataclass(frozen=True)
class StepView:
    """One step."""

    transition: Transition
    depth: int
    """Below the top of the tree."""
    lane: str
    """Whose: the agent's name behind those of the agents around it, `team/maths`, or that nobody said."""
    starts: float
    """Seconds since the attempt's start."""
    ends: float | None
    """`None`: it was interrupted."""
    messages: tuple[MessageView, ...]
    """Of a model call, those that the agent's call before did not have already."""
    earlier: int
    """Messages before those."""
    answer: str
    """Of a model call, its text and tool calls."""
    unreadable: str | None
    """Why the messages can't be read."""
    superseded: tuple[CallEvent, ...]
    """Tries of the same step that did not count."""
    rewards: tuple[RewardEvent, ...]
    """All that were given to the step itself."""

    @property
    def action(self) -> str:
        """What the step did, as one text: the same of two members where they did the same."""
        one = self.transition
        if one.kind is StepKind.LLM:
            return self.answer
        parts = [
            one.name,
            *(as_text(part) for part in (one.inputs, one.output) if part is not None),
        ]
        return "\n".join(parts)

    def contains(self, text: str) -> bool:
        """Whether any text of the step contains `text`, in whatever case."""
        one = self.transition
        texts = [self.action, self.lane, one.name, one.error or "", one.step_id]
        texts += [message.text for message in self.messages]
        return any(text.casefold() in part.casefold() for part in texts)


@dataclass(frozen=True)
class AttemptView:
    """One attempt."""

    record: AttemptRecord
    steps: tuple[StepView, ...]
    """From the top of the tree down."""
    lanes: tuple[str, ...]
    """In order of their first step."""
    seconds: float
    """From its start to its end, or to the last thing that it did."""
    rewards: tuple[RewardEvent, ...]
    """Of the rollout as a whole, in order of arrival."""
    unjoined: tuple[RewardEvent, ...]
    """For steps that nobody took."""
    logs: tuple[LogEvent, ...]

    @property
    def longest_first(self) -> list[StepView]:
        """The steps so that a short one is drawn over a long one."""
        over = self.seconds
        return sorted(
            self.steps, key=lambda one: one.starts - (over if one.ends is None else one.ends)
        )


UNREADABLE = (ValueError, TypeError, KeyError, AttributeError, msgspec.DecodeError)
"""What reading a request raises that no engine would have taken; whoever sent it may have written anything."""

NOBODY = "(no agent named)"
"""The lane of steps of which nobody said whose they are."""


def lane_of(one: Transition, steps: Mapping[StepId, Transition]) -> str:
    """The lane of one of an attempt's steps, so that agents of one name within others have lanes of their own."""
    return "/".join(agent_path(one, steps)) or NOBODY


def attempt_view(record: AttemptRecord) -> AttemptView:
    """An attempt's steps, in time and as a tree."""
    reader = _Reader(record)
    steps = tuple(reader.step(depth, one) for depth, one in outline(record.transitions))
    begun = record.attempt.started_at
    last = record.attempt.ended_at or max([event.at for event in record.events], default=begun)
    ends = [step.ends if step.ends is not None else step.starts for step in steps]
    given = [event for event in record.events if isinstance(event, RewardEvent)]
    return AttemptView(
        record=record,
        steps=steps,
        lanes=tuple(dict.fromkeys(step.lane for step in sorted(steps, key=lambda one: one.starts))),
        seconds=max([*ends, (last - begun).total_seconds(), 0.001]),
        rewards=tuple(event for event in given if event.step_id is None),
        unjoined=tuple(unjoined_rewards(record.events)),
        logs=tuple(event for event in record.events if isinstance(event, LogEvent)),
    )


def message_view(message: Any) -> MessageView:
    """A message with its tool calls, as text; what is no message as it is."""
    if not isinstance(message, dict):
        return MessageView("?", as_text(message))
    content = message.get("content")
    parts = [as_text(content)] if content not in (None, "") else []
    asked = message.get("tool_calls")
    for one in asked if isinstance(asked, list) else ():
        function = one.get("function") if isinstance(one, dict) else None
        named = function if isinstance(function, dict) else {}
        parts.append(f"→ {named.get('name')}({named.get('arguments', '')})")
    if message.get("tool_call_id"):
        parts.insert(0, f"[{message['tool_call_id']}]")
    return MessageView(str(message.get("role", "?")), "\n".join(parts))


class _Reader:
    """Reads one attempt's steps; conversations are read in order of arrival, once."""

    def __init__(self, record: AttemptRecord) -> None:
        self._begun = record.attempt.started_at
        self._steps = {one.step_id: one for one in record.transitions}
        self._ended: dict[StepId, datetime] = {}
        self._rewards: dict[StepId, list[RewardEvent]] = {}
        self._calls: dict[StepId, list[CallEvent]] = {}
        self._messages: dict[str, list[Message] | str] = {}
        self._before: dict[str, int] = {}
        recorded, latest = Recorded(), dict[Asker, list[Message]]()
        for event in record.events:
            if isinstance(event, StepEndEvent):
                self._ended.setdefault(event.step_id, event.at)
            elif isinstance(event, RewardEvent) and event.step_id is not None:
                self._rewards.setdefault(event.step_id, []).append(event)
            elif isinstance(event, CallEvent):
                self._calls.setdefault(event.step_id, []).append(event)
                self._read(recorded, latest, event)

    def _read(
        self,
        recorded: Recorded,
        latest: dict[Asker, list[Message]],
        call: CallEvent,
    ) -> None:
        try:
            messages = recorded.messages(call)
            recorded.add(call)
        except UNREADABLE as error:
            self._messages[call.id] = str(error)
            return
        self._messages[call.id] = messages
        who = asker_of(call)
        self._before[call.id] = _shared(latest.get(who, []), messages)
        latest[who] = messages

    def step(self, depth: int, one: Transition) -> StepView:
        """One step."""
        call = one.call
        read = self._messages.get(call.id, []) if call is not None else []
        earlier = self._before.get(call.id, 0) if call is not None else 0
        ended = self._ended.get(one.step_id) or (call.at if call is not None else None)
        return StepView(
            transition=one,
            depth=depth,
            lane=lane_of(one, self._steps),
            starts=max(0.0, (one.started_at - self._begun) / timedelta(seconds=1)),
            ends=max(0.0, (ended - self._begun) / timedelta(seconds=1))
            if ended is not None
            else None,
            messages=tuple(map(message_view, read[earlier:])) if isinstance(read, list) else (),
            earlier=earlier,
            answer="\n".join(answer_parts(one)),
            unreadable=read if isinstance(read, str) else None,
            superseded=tuple(
                other
                for other in self._calls.get(one.step_id, ())
                if call is None or other.id != call.id
            ),
            rewards=tuple(self._rewards.get(one.step_id, ())),
        )


def _shared(before: Sequence[Message], now: Sequence[Message]) -> int:
    """How many messages two requests begin with alike."""
    count = 0
    for first, second in zip(before, now, strict=False):
        if first != second:
            break
        count += 1
    return count
