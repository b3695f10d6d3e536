"""Branches among the groups of an iteration: rollouts that replay the first answers of a member and go on from there.

Invariant: what a branch is follows from its own record. Its trunk is what it was given again, whatever its parent did
besides; a task's weight in the loss is the same with and without branches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lightningrl.conversation.replaying import arrived_at, origin_of
from lightningrl.experience.transition import Group, Trace
from lightningrl.schema import AttemptId, CallEvent, CallStatus, Event, ReplayOf, StepId


def is_branch(trace: Trace) -> bool:
    """Whether the rollout is a fork of another one."""
    return trace.rollout.spec.fork is not None


def unforked(groups: Sequence[Group]) -> list[Group]:
    """The groups without those of branches."""
    return [group for group in groups if not any(map(is_branch, group.traces))]


def rollout_weights(groups: Sequence[Group]) -> list[list[float]]:
    """[group][member] what each rollout weighs in the loss, in whole rollouts; all together `unforked` has.

    The n members of a group and all b branches of theirs weigh n / (n + b) each. A branch whose parent is in none of
    the groups weighs 0. Without branches all weigh 1.
    """
    home = {trace.attempt.id: g for g, group in enumerate(groups) for trace in group.traces}
    owners = [[_owner(g, trace, home) for trace in group.traces] for g, group in enumerate(groups)]
    members, sharers = [0] * len(groups), [0] * len(groups)
    for g, of_group in enumerate(owners):
        for owner in of_group:
            if owner is not None:
                members[owner] += owner == g
                sharers[owner] += 1
    return [
        [0.0 if owner is None else members[owner] / sharers[owner] for owner in of_group]
        for of_group in owners
    ]


def _owner(g: int, trace: Trace, home: dict[AttemptId, int]) -> int | None:
    """Which group's weight a rollout shares."""
    fork = trace.rollout.spec.fork
    return g if fork is None else home.get(fork.attempt)


def trunk_of(events: Sequence[Event], step: StepId) -> frozenset[ReplayOf]:
    """The answers that a fork of an attempt at `step` is given again: those that were there when its request arrived.

    Raises:
        KeyError: the attempt has no call of that step.
    """
    calls = [one for one in events if isinstance(one, CallEvent)]
    at = arrived_at(calls, step)
    last = {one.step_id: one for one in calls if one.status is CallStatus.DELIVERED}
    return frozenset(origin_of(one) for one in last.values() if one.at <= at)


@dataclass(frozen=True)
class Replay:
    """How a branch followed its trunk."""

    whole: bool
    """Whether it was given all of its trunk, sampled after it, and asked for nothing else on the way."""
    diverged: bool
    sampled: int
    """Tokens that were sampled for it."""
    saved: int
    """Tokens that it was given again."""


def replay_of(events: Sequence[Event], trunk: frozenset[ReplayOf]) -> Replay:
    """What the events of a branch's attempt say.

    Args:
        events: of the attempt.
        trunk: of its fork; see `trunk_of`.
    """
    calls = [one for one in events if isinstance(one, CallEvent)]
    given = [one for one in calls if one.replay_of is not None]
    found = {one.replay_of for one in given}
    diverged = any(one.diverged is not None for one in calls)
    beyond = any(one.status is CallStatus.DELIVERED and one.replay_of not in trunk for one in calls)
    return Replay(
        whole=trunk <= found and beyond and not diverged,
        diverged=diverged,
        sampled=sum(one.completion_tokens for one in calls if one.replay_of is None),
        saved=sum(one.completion_tokens for one in given if one.replay_of in trunk),
    )
