"""Transitions: the RL view of what an attempt did, a pure function of its events.

Invariant: `assemble` reads nothing but its arguments, so any stored run can be assembled again years
later and gives the same transitions. It never waits: what is missing is said, not guessed.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from statistics import fmean
from typing import Any

import msgspec

from lightningrl.experience.choices import pick_choices
from lightningrl.experience.tokens import LogProbs, TokenIds, ids_from_bytes, logprobs_from_bytes
from lightningrl.schema import (
    FINAL,
    Attempt,
    AttemptId,
    CallEvent,
    CallStatus,
    Choice,
    Event,
    EventId,
    GroupId,
    LogEvent,
    RewardEvent,
    Rollout,
    RolloutId,
    StepEndEvent,
    StepId,
    StepKind,
    StepStartEvent,
    names_of,
)

NO_CALL = "no call of this step reached the gateway"
"""Why a model step that an adapter saw, and the gateway did not, is not trained."""

_NEVER = datetime.min.replace(tzinfo=UTC)


class Transition(msgspec.Struct, frozen=True, eq=False, kw_only=True, gc=False):
    """One step as state, action and reward."""

    step_id: StepId
    rollout_id: RolloutId
    attempt_id: AttemptId
    kind: StepKind
    name: str
    """Of the tool or agent; of the model for `llm` steps."""
    agent: str | None
    """Who took the step, by the adapter, else by the step header. `None`: nobody said."""
    parent_id: StepId | None
    started_at: datetime
    asked_by: StepId | None = None
    """Of a tool step the model call that asked for it, else its nearest model ancestor."""
    call: CallEvent | None = None
    """`llm` steps: the delivered call that counts. `None`: no call was delivered, or another kind."""
    prompt_bytes: bytes = b""
    """`prompt_ids` as they travel, little-endian int32."""
    token_bytes: bytes = b""
    """`token_ids` as they travel."""
    logprob_bytes: bytes = b""
    """`logprobs` as they travel, little-endian float32."""
    chosen: int = 0
    """Index of the sampled answer that is the action, among `call.choices`."""
    inputs: Any = None
    output: Any = None
    error: str | None = None
    interrupted: bool = False
    """The step began and never ended."""
    reward: float | None = None
    """Sum of the step's own rewards (and, on `llm` steps, of the tools that it asked for)."""
    untrainable: str | None = None
    """Why no token of it may be trained. `None`: they may."""

    @property
    def within(self) -> tuple[str, ...]:
        """The agents around the one that took the step, the outermost first; empty for other kinds than `llm`."""
        return () if self.call is None else self.call.within

    @property
    def agent_path(self) -> str | None:
        """The agent with those around it in front: `team/maths`. `None`: nobody said."""
        return next(iter(names_of(self.agent, self.within)), None)

    @property
    def prompt_ids(self) -> TokenIds:
        """int32 [P], the state as the engine saw it; empty for other kinds than `llm`."""
        return ids_from_bytes(self.prompt_bytes)

    @property
    def token_ids(self) -> TokenIds:
        """int32 [L], the action as the engine sampled it; empty for other kinds than `llm`."""
        return ids_from_bytes(self.token_bytes)

    @property
    def logprobs(self) -> LogProbs:
        """float32 [L], aligned with `token_ids`."""
        return logprobs_from_bytes(self.logprob_bytes)

    @property
    def choice(self) -> Choice | None:
        """The sampled answer that is the action. `None`: another kind, or no answer."""
        call = self.call
        return call.choices[self.chosen] if call is not None and call.choices else None


@dataclass(frozen=True, eq=False)
class Trace:
    """One attempt that is trained on, as credit assigners see it."""

    rollout: Rollout
    attempt: Attempt
    transitions: tuple[Transition, ...]
    """In order of their start."""
    reward: float
    """The final reward."""
    parts: Mapping[str, float] = field(default_factory=dict[str, float])
    """What stands beside it: name -> number."""

    @property
    def calls(self) -> list[Transition]:
        """The `llm` transitions."""
        return [one for one in self.transitions if one.kind is StepKind.LLM]


@dataclass(frozen=True, eq=False)
class Group:
    """The scored rollouts of one task that a credit assigner compares."""

    group_id: GroupId
    traces: tuple[Trace, ...]


class _Step:
    """What the events say of one step, while they are being read."""

    __slots__ = ("calls", "delivered", "end", "order", "rewards", "start", "started_at", "step_id")

    def __init__(self, step_id: StepId, order: int) -> None:
        self.step_id = step_id
        self.order = order
        self.start: StepStartEvent | None = None
        self.end: StepEndEvent | None = None
        self.calls: list[CallEvent] = []
        self.rewards: dict[str, RewardEvent] | None = None
        self.delivered: CallEvent | None = None
        """The last call that reached the agent; the earlier ones are superseded (SDK retries)."""
        self.started_at = _NEVER
        """`_NEVER` until `begun` has looked."""

    def begun(self) -> bool:
        """Whether the step has a start or a call; notes when it began."""
        if self.start is not None:
            self.started_at = self.start.at
        elif self.calls:
            call = self.calls[0]
            self.started_at = call.at - timedelta(milliseconds=call.latency_ms)
        return self.started_at is not _NEVER


def assemble(rollout: Rollout, attempt: Attempt, events: Sequence[Event]) -> tuple[Transition, ...]:
    """The transitions of one attempt, in order of their start.

    A reward for a step that no event mentions is left out here (`unjoined_rewards` lists those).
    """
    steps = _collect(events)
    begun = [step for step in steps.values() if step.begun()]
    asked = _askers(steps)
    rewards = _step_rewards(steps, asked)
    begun.sort(key=_order)
    picked = pick_choices([step.delivered for step in begun if step.delivered is not None])
    return tuple(
        _transition(rollout.id, attempt.id, step, rewards.get(step.step_id), asked, picked)
        for step in begun
    )


def _order(step: _Step) -> tuple[datetime, int]:
    return step.started_at, step.order


def final_reward(events: Iterable[Event]) -> RewardEvent | None:
    """The rollout's reward of the highest revision; the later one where revisions are equal."""
    best: RewardEvent | None = None
    for event in events:
        if (
            isinstance(event, RewardEvent)
            and event.step_id is None
            and event.name == FINAL
            and (best is None or event.revision >= best.revision)
        ):
            best = event
    return best


def reward_parts(events: Iterable[Event]) -> dict[str, float]:
    """The rollout's rewards of other names than the final one's; of each the highest revision, of equal ones the later."""
    best: dict[str, RewardEvent] = {}
    for event in events:
        if isinstance(event, RewardEvent) and event.step_id is None and event.name != FINAL:
            held = best.get(event.name)
            if held is None or event.revision >= held.revision:
                best[event.name] = event
    return {name: event.value for name, event in best.items()}


def mean_parts(parts: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Of each part the mean over the rollouts that have it, by name; no rollout gives none."""
    values: dict[str, list[float]] = {}
    for of_rollout in parts:
        for name, value in of_rollout.items():
            values.setdefault(name, []).append(value)
    return {name: fmean(of_part) for name, of_part in sorted(values.items())}


def unjoined_rewards(events: Sequence[Event]) -> list[RewardEvent]:
    """Step rewards whose step has neither a start nor a call."""
    known = {event.step_id for event in events if isinstance(event, StepStartEvent | CallEvent)}
    return [
        event
        for event in events
        if isinstance(event, RewardEvent)
        and event.step_id is not None
        and event.step_id not in known
    ]


def _collect(events: Sequence[Event]) -> dict[StepId, _Step]:
    steps: dict[StepId, _Step] = {}
    for order, event in enumerate(events):
        if isinstance(event, LogEvent) or event.step_id is None:
            continue  # for people, or a reward of the rollout
        step = steps.get(event.step_id)
        if step is None:
            step = steps[event.step_id] = _Step(event.step_id, order)
        if isinstance(event, CallEvent):
            step.calls.append(event)
            if event.status is CallStatus.DELIVERED:
                step.delivered = event
        elif isinstance(event, StepStartEvent):
            step.start = step.start or event
        elif isinstance(event, StepEndEvent):
            step.end = step.end or event
        else:
            _add_reward(step, event)
    return steps


def _add_reward(step: _Step, event: RewardEvent) -> None:
    if step.rewards is None:
        step.rewards = {}
    held = step.rewards.get(event.name)
    if held is None or event.revision >= held.revision:
        step.rewards[event.name] = event


def _step_rewards(
    steps: dict[StepId, _Step], asked: Mapping[StepId, StepId]
) -> dict[StepId, float]:
    """Own rewards per step; a tool's count for the model call that asked for it as well."""
    totals: dict[StepId, float] = {}
    for step in steps.values():
        if not step.rewards:
            continue
        value = sum(reward.value for reward in step.rewards.values())
        for rewarded in (step.step_id, asked.get(step.step_id)):
            if rewarded is not None:
                totals[rewarded] = totals.get(rewarded, 0.0) + value
    return totals


def _askers(steps: dict[StepId, _Step]) -> dict[StepId, StepId]:
    """Tool step -> the model call that asked for it, else its nearest model ancestor."""
    tools = [
        step
        for step in steps.values()
        if step.start is not None and step.start.kind is StepKind.TOOL
    ]
    found: dict[StepId, StepId] = {}
    callers = _callers(steps) if tools else {}
    for step in tools:
        assert step.start is not None
        asker = _caller(callers.get(step.start.tool_call_id or "", []), step)
        asker = asker or _model_ancestor(steps, step)
        if asker is not None:
            found[step.step_id] = asker
    return found


def _callers(steps: dict[StepId, _Step]) -> dict[str, list[_Step]]:
    """Tool call id -> the model steps whose answers have it: some engines count anew each turn."""
    found: dict[str, list[_Step]] = {}
    for step in steps.values():
        call = step.delivered
        for choice in call.choices if call is not None else ():
            for tool_call in json.loads(choice.message or b"{}").get("tool_calls") or ():
                if tool_call.get("id"):
                    found.setdefault(tool_call["id"], []).append(step)
    return found


def _caller(asked: Sequence[_Step], tool: _Step) -> StepId | None:
    """Of the model steps that asked under the tool's id, the last one begun before the tool."""
    before = [step for step in asked if step.started_at <= tool.started_at]
    nearest = max(before or asked, key=lambda step: step.started_at, default=None)
    return nearest.step_id if nearest is not None else None


def _model_ancestor(steps: dict[StepId, _Step], step: _Step) -> StepId | None:
    seen: set[StepId] = set()
    current: _Step | None = step
    while current is not None and current.start is not None and current.start.parent_id:
        parent = current.start.parent_id
        if parent in seen:
            return None
        seen.add(parent)
        current = steps.get(parent)
        if current is not None and current.calls:
            return current.step_id
    return None


def _transition(
    rollout_id: RolloutId,
    attempt_id: AttemptId,
    step: _Step,
    reward: float | None,
    asked: Mapping[StepId, StepId],
    picked: Mapping[EventId, int],
) -> Transition:
    start, end, call = step.start, step.end, step.delivered
    last = call or (step.calls[-1] if step.calls else None)
    is_model_step = last is not None or (start is not None and start.kind is StepKind.LLM)
    place = picked.get(call.id, 0) if call is not None else 0
    choice = call.choices[place] if call is not None and call.choices else None
    if call is not None:
        untrainable = _why_untrainable(call, place if call.id in picked else None)
    else:
        untrainable = _without_call(is_model_step, last)
    return Transition(
        step_id=step.step_id,
        rollout_id=rollout_id,
        attempt_id=attempt_id,
        kind=StepKind.LLM if is_model_step or start is None else start.kind,
        name=start.name if start is not None else (last.model if last is not None else ""),
        agent=(start.agent if start is not None else None) or (last.agent if last else None),
        parent_id=start.parent_id if start is not None else None,
        started_at=step.started_at,
        asked_by=asked.get(step.step_id),
        call=call,
        prompt_bytes=call.prompt_ids if call is not None else b"",
        token_bytes=choice.token_ids if choice is not None else b"",
        logprob_bytes=choice.logprobs if choice is not None else b"",
        chosen=place,
        inputs=start.inputs if start is not None else None,
        output=end.output if end is not None else None,
        error=(end.error if end is not None else None) or (last.error if last else None),
        interrupted=start is not None and end is None,
        reward=reward,
        untrainable=untrainable,
    )


def _without_call(is_model_step: bool, last: CallEvent | None) -> str:
    if not is_model_step:
        return "not a model call"
    if last is None:
        return NO_CALL
    return f"the call was {last.status.value}: {last.error or f'status {last.http_status}'}"


def _why_untrainable(call: CallEvent, picked: int | None) -> str | None:
    """Args: `picked`, of a call with several answers the one that the agent went on with, if known."""
    if not call.choices:
        return "the answer has no choices"
    if len(call.choices) > 1 and picked is None:
        return f"asked for {len(call.choices)} answers; which one the agent went on with is unknown"
    choice = call.choices[picked or 0]
    if call.version_start != call.version_end:
        return f"sampled across policy versions {call.version_start} and {call.version_end}"
    if not call.prompt_ids:
        return "the engine gave no prompt token ids"
    if choice.untrainable is None and len(choice.token_ids) != len(choice.logprobs):
        ids, logprobs = len(choice.token_ids) // 4, len(choice.logprobs) // 4
        return f"the engine gave {ids} token ids and {logprobs} log-probs"
    return choice.untrainable
