"""Small groups for tests of credit assigners: what an agent was told, what it did, what it got."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from lightningrl.experience.transition import Group, Trace, Transition
from lightningrl.schema import (
    REPLAYED,
    Attempt,
    AttemptId,
    AttemptState,
    Fork,
    GroupId,
    Mode,
    NewRollout,
    ReplayOf,
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


def trace(
    reward: float,
    *steps: Did,
    conversation: bool = False,
    member: int = 0,
    attempt_id: str = "a",
    fork: Fork | None = None,
) -> Trace:
    """One member.

    Args:
        reward: the final reward.
        steps: in order.
        conversation: whether each call's messages hold the calls before; else each begins anew.
        member: its index within the group.
        attempt_id: its attempt's.
        fork: whose branch it is; see `branch`.
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
        fork=fork,
    )
    attempt = Attempt(
        id=AttemptId(attempt_id),
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
        transitions.append(_transition(attempt.id, spec.id, f"s{index}", step, said))
        said.append({"role": "assistant", "content": step.action})
    rollout = Rollout(spec, RolloutState.SUCCEEDED, 1, reward, AT, AT)
    return Trace(rollout, attempt, tuple(transitions), reward)


def branch(parent: Trace, at: int, reward: float, *steps: Did, number: int = 0) -> Trace:
    """A branch of a member: it is given the answers of the calls before transition `at` again, then takes `steps`.

    Args:
        parent: the member, all of whose transitions are model calls; its attempt's id must be its own.
        at: which of its calls is sampled anew.
        reward: the branch's final reward.
        steps: what it did from there on.
        number: its index within its group.
    """
    origin = parent.attempt.id
    fork = Fork(origin, parent.transitions[at].step_id)
    own = trace(reward, *steps, member=number, attempt_id=f"{origin}/{at}/{number}", fork=fork)
    again = tuple(_replayed(one, own, parent) for one in parent.transitions[:at])
    return Trace(own.rollout, own.attempt, again + own.transitions, reward)


def _replayed(one: Transition, branch: Trace, parent: Trace) -> Transition:
    told = f"{REPLAYED}{parent.rollout.id}"
    assert one.call is not None
    choices = tuple(msgspec.structs.replace(each, untrainable=told) for each in one.call.choices)
    copy = msgspec.structs.replace(
        one.call,
        attempt_id=branch.attempt.id,
        choices=choices,
        replay_of=ReplayOf(parent.attempt.id, one.call.id),
    )
    return msgspec.structs.replace(
        one,
        step_id=StepId(f"again-{one.step_id}"),
        rollout_id=branch.rollout.id,
        attempt_id=branch.attempt.id,
        call=copy,
        untrainable=told,
    )


def group(*traces: Trace, name: str = "g") -> Group:
    """One group."""
    return Group(GroupId(name), traces)


def _transition(
    attempt: AttemptId,
    rollout: RolloutId,
    ident: str,
    step: Did,
    messages: Sequence[dict[str, str]],
) -> Transition:
    model = step.kind is StepKind.LLM
    record = call(attempt, ident, request=msgspec.json.encode({"messages": list(messages)}))
    answer = msgspec.json.encode({"role": "assistant", "content": step.action})
    choice = msgspec.structs.replace(record.choices[0], message=answer)
    return Transition(
        step_id=StepId(ident),
        rollout_id=rollout,
        attempt_id=attempt,
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
