"""Small groups for tests of credit assigners: what an agent was told, what it did, what it got."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from lightningrl.experience.transition import Group, Trace, Transition
from lightningrl.schema import (
    Attempt,
    AttemptId,
    AttemptState,
    GroupId,
    Mode,
    NewRollout,
    Rollout,
    RolloutId,
    RolloutState,
    StepId,
    StepKind,
)
from lightningrl_testkit.records import AT, call, ids


@dataclass(frozen=True)
class Did:
    """One step of an agent."""

    state: str
    """What a user or tool told the model since its last answer."""
    action: str = "a"
    """The model's answer; of a tool step its output."""
    reward: float | None = None
    agent: str | None = None
    tokens: int = 1
    """Sampled tokens, all equal."""
    kind: StepKind = StepKind.LLM
    within: tuple[str, ...] = ()
    """The agents around it; of a model's step alone."""


def trace(reward: float, *steps: Did, conversation: bool = False, member: int = 0) -> Trace:
    """One member.

    Args:
        reward: the final reward.
        steps: in order.
        conversation: whether each call's messages hold the calls before; else each begins anew.
        member: its index within the group.
    """
    spec = NewRollout(
        id=RolloutId(f"r{member}"),
        run="run",
        mode=Mode.TRAIN,
        iteration=1,
        task_id="task",
        group_id=GroupId("g"),
        member=member,
        task={},
    )
    attempt = Attempt(
        id=AttemptId("a"),
        rollout_id=spec.id,
        number=1,
        state=AttemptState.SUCCEEDED,
        worker="w",
        lease_expires_at=AT,
        started_at=AT,
        ended_at=AT,
        failure=None,
        output=None,
    )
    transitions: list[Transition] = []
    said: list[dict[str, str]] = []
    for index, step in enumerate(steps):
        said = [*(said if conversation else []), {"role": "user", "content": step.state}]
        transitions.append(_transition(spec.id, f"s{index}", step, said))
        said.append({"role": "assistant", "content": step.action})
    rollout = Rollout(spec, RolloutState.SUCCEEDED, 1, reward, AT, AT)
    return Trace(rollout, attempt, tuple(transitions), reward)


def group(*traces: Trace, name: str = "g") -> Group:
    """One group."""
    return Group(GroupId(name), traces)


def _transition(
    rollout: RolloutId, ident: str, step: Did, messages: Sequence[dict[str, str]]
) -> Transition:
    model = step.kind is StepKind.LLM
    record = call(AttemptId("a"), ident, request=msgspec.json.encode({"messages": list(messages)}))
    answer = msgspec.json.encode({"role": "assistant", "content": step.action})
    choice = msgspec.structs.replace(record.choices[0], message=answer)
    return Transition(
        step_id=StepId(ident),
        rollout_id=rollout,
        attempt_id=AttemptId("a"),
        kind=step.kind,
        name="m",
        agent=step.agent,
        parent_id=None,
        started_at=AT,
        call=msgspec.structs.replace(record, choices=(choice,), within=step.within)
        if model
        else None,
        token_bytes=ids([zlib.crc32(step.action.encode()) >> 1] * step.tokens) if model else b"",
        output=None if model else step.action,
        reward=step.reward,
        untrainable=None if model else "not a model call",
    )
