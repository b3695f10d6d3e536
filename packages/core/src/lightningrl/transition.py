"""Transitions: the RL view of what an attempt did, a pure function of its events.

Invariant: `assemble` reads nothing but its arguments, so any stored run can be assembled again years
later and gives the same transitions. It never waits: what is missing is said, not guessed.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from lightningrl.schema import (
    FINAL,
    Attempt,
    AttemptId,
    CallEvent,
    CallStatus,
    Event,
    GroupId,
    RewardEvent,
    Rollout,
    RolloutId,
    StepEndEvent,
    StepId,
    StepKind,
    StepStartEvent,
)
from lightningrl.tokens import LogProbs, TokenIds, ids_from_bytes, logprobs_from_bytes

_NO_IDS = ids_from_bytes(b"")
_NO_LOGPROBS = logprobs_from_bytes(b"")


@dataclass(frozen=True, eq=False)
class Transition:
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
    call: CallEvent | None = None
    """`llm` steps: the delivered call that counts. `None`: no call was delivered, or another kind."""
    prompt_ids: TokenIds = field(default_factory=lambda: _NO_IDS)
    """int32 [P], the state as the engine saw it; empty for other kinds than `llm`."""
    token_ids: TokenIds = field(default_factory=lambda: _NO_IDS)
    """int32 [L], the action as the engine sampled it; empty for other kinds than `llm`."""
    logprobs: LogProbs = field(default_factory=lambda: _NO_LOGPROBS)
    """float32 [L], aligned with `token_ids`."""
    inputs: Any = None
    output: Any = None
    error: str | None = None
    interrupted: bool = False
    """The step began and never ended."""
    reward: float | None = None
    """Sum of the step's own rewards (and, on `llm` steps, of the tools that it asked for)."""
    untrainable: str | None = None
    """Why no token of it may be trained. `None`: they may."""


@dataclass(frozen=True, eq=False)
class Trace:
    """One succeeded attempt, as credit assigners see it."""

    rollout: Rollout
    attempt: Attempt
    transitions: tuple[Transition, ...]
    """In order of their start."""
    reward: float
    """The final reward."""

    @property
    def calls(self) -> list[Transition]:
        """The `llm` transitions."""
        return [one for one in self.transitions if one.kind is StepKind.LLM]


@dataclass(frozen=True, eq=False)
class Group:
    """The scored rollouts of one task that a credit assigner compares."""

    group_id: GroupId
    traces: tuple[Trace, ...]


@dataclass
class _Step:
    """What the events say of one step, while they are being read."""

    step_id: StepId
    order: int
    start: StepStartEvent | None = None
    end: StepEndEvent | None = None
    calls: list[CallEvent] = field(default_factory=list[CallEvent])
    rewards: dict[str, RewardEvent] = field(default_factory=dict[str, RewardEvent])

    @property
    def delivered(self) -> CallEvent | None:
        """The last call that reached the agent; the earlier ones are superseded (SDK retries)."""
        done = [call for call in self.calls if call.status is CallStatus.DELIVERED]
        return done[-1] if done else None

    @property
    def started_at(self) -> datetime:
        if self.start is not None:
            return self.start.at
        call = self.calls[0]
        return call.at - timedelta(milliseconds=call.latency_ms)


def assemble(rollout: Rollout, attempt: Attempt, events: Sequence[Event]) -> tuple[Transition, ...]:
    """The transitions of one attempt, in order of their start.

    A reward for a step that no event mentions is left out here (`unjoined_rewards` lists those).
    """
    steps = _collect(events)
    rewards = _step_rewards(steps)
    ordered = sorted(
        (step for step in steps.values() if step.start is not None or step.calls),
        key=lambda step: (step.started_at, step.order),
    )
    return tuple(_transition(rollout, attempt, step, rewards.get(step.step_id)) for step in ordered)


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
        step_id = getattr(event, "step_id", None)
        if step_id is None:
            continue
        step = steps.setdefault(step_id, _Step(step_id, order))
        if isinstance(event, CallEvent):
            step.calls.append(event)
        elif isinstance(event, StepStartEvent):
            step.start = step.start or event
        elif isinstance(event, StepEndEvent):
            step.end = step.end or event
        elif isinstance(event, RewardEvent):
            held = step.rewards.get(event.name)
            if held is None or event.revision >= held.revision:
                step.rewards[event.name] = event
    return steps


def _step_rewards(steps: dict[StepId, _Step]) -> dict[StepId, float]:
    """Own rewards per step; a tool's count for the model call that asked for it as well."""
    totals: dict[StepId, float] = {}
    asked = _callers(steps)
    for step in steps.values():
        if not step.rewards:
            continue
        value = sum(reward.value for reward in step.rewards.values())
        totals[step.step_id] = totals.get(step.step_id, 0.0) + value
        if step.start is not None and step.start.kind is StepKind.TOOL:
            caller = _caller(asked.get(step.start.tool_call_id or "", []), step)
            caller = caller or _model_ancestor(steps, step)
            if caller is not None:
                totals[caller] = totals.get(caller, 0.0) + value
    return totals


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
    rollout: Rollout, attempt: Attempt, step: _Step, reward: float | None
) -> Transition:
    start, end = step.start, step.end
    call = step.delivered
    last = call or (step.calls[-1] if step.calls else None)
    is_model_step = bool(step.calls) or (start is not None and start.kind is StepKind.LLM)
    common: dict[str, Any] = {
        "step_id": step.step_id,
        "rollout_id": rollout.id,
        "attempt_id": attempt.id,
        "kind": StepKind.LLM if is_model_step else (start.kind if start else StepKind.LLM),
        "name": start.name if start else (last.model if last else ""),
        "agent": (start.agent if start else None) or (last.agent if last else None),
        "parent_id": start.parent_id if start else None,
        "started_at": step.started_at,
        "inputs": start.inputs if start else None,
        "output": end.output if end else None,
        "error": (end.error if end else None) or (last.error if last else None),
        "interrupted": start is not None and end is None,
        "reward": reward,
    }
    if call is None:
        return Transition(**common, untrainable=_without_call(is_model_step, last))
    choice = call.choices[0] if call.choices else None
    return Transition(
        **common,
        call=call,
        prompt_ids=ids_from_bytes(call.prompt_ids),
        token_ids=ids_from_bytes(choice.token_ids) if choice else _NO_IDS,
        logprobs=logprobs_from_bytes(choice.logprobs) if choice else _NO_LOGPROBS,
        untrainable=_why_untrainable(call),
    )


def _without_call(is_model_step: bool, last: CallEvent | None) -> str:
    if not is_model_step:
        return "not a model call"
    if last is None:
        return "no call of this step reached the gateway"
    return f"the call was {last.status.value}: {last.error or f'status {last.http_status}'}"


def _why_untrainable(call: CallEvent) -> str | None:
    if not call.choices:
        return "the answer has no choices"
    choice, *others = call.choices
    if others:
        return f"asked for {len(call.choices)} answers; which one the agent went on with is unknown"
    if call.version_start != call.version_end:
        return f"sampled across policy versions {call.version_start} and {call.version_end}"
    if not call.prompt_ids:
        return "the engine gave no prompt token ids"
    if choice.untrainable is None and len(choice.token_ids) != len(choice.logprobs):
        ids, logprobs = len(choice.token_ids) // 4, len(choice.logprobs) // 4
        return f"the engine gave {ids} token ids and {logprobs} log-probs"
    return choice.untrainable
