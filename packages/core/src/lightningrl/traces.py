"""Traces: what the store holds of attempts, read and assembled for training and for people.

Invariant: these functions only read. The same stored events give the same groups each time, so
`lightningrl show` computes the credit of a past iteration from what the trainer computed it from.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from msgspec import structs

from lightningrl.errors import StoreError
from lightningrl.experience.transition import (
    Group,
    Trace,
    Transition,
    assemble,
    mean_parts,
    reward_parts,
)
from lightningrl.schema import (
    Attempt,
    AttemptId,
    AttemptState,
    Event,
    RewardEvent,
    Rollout,
    RolloutId,
    StepId,
    TakenGroup,
    TakenRollout,
)
from lightningrl.store.base import LedgerEntry, RolloutQuery, Store

_ATTEMPTS_PER_READ = 256
"""Attempts whose events are read at once, so that an answer over HTTP stays in the megabytes."""
_ROLLOUTS_PER_LOOK = 32


@dataclass(frozen=True, eq=False)
class AttemptRecord:
    """One attempt with everything that it left, whether or not it succeeded."""

    rollout: Rollout
    attempt: Attempt
    events: tuple[Event, ...]
    """In order of arrival."""
    transitions: tuple[Transition, ...]
    """In order of their start."""


async def read_traces(store: Store, taken: Sequence[TakenGroup]) -> list[Group]:
    """The groups that the ledger gave to an iteration, ready for a credit assigner.

    Order is kept: of groups, and of rollouts within a group. No groups give an empty list.
    """
    members = [member for group in taken for member in group.rollouts]
    events = iter(await _read_events(store, [member.attempt.id for member in members]))
    return [
        Group(
            group.group_id,
            tuple(_trace(member, next(events)[: member.events]) for member in group.rollouts),
        )
        for group in taken
    ]


def _trace(member: TakenRollout, events: Sequence[Event]) -> Trace:
    transitions = assemble(member.rollout, member.attempt, events)
    return Trace(member.rollout, member.attempt, transitions, member.reward, reward_parts(events))


async def read_ledger(store: Store, run: str, iteration: int) -> list[Group]:
    """The groups that an iteration took, as far as the ledger knows; skipped ones are left out.

    The same groups that `read_traces` gave the trainer, whatever has arrived since; but it needs no
    `take`, so it works on a store that is open for reading only.

    Raises:
        StoreError: the ledger names a rollout or attempt that the store doesn't have.
    """
    entries = [entry for entry in await store.ledger(run, iteration=iteration) if entry.members]
    members = [member for entry in entries for member in entry.members]
    if not members:
        return []
    ids = tuple(member.rollout_id for member in members)
    rollouts = {one.id: one for one in await store.rollouts(RolloutQuery(ids=ids))}
    attempts = {one.id: one for one in await store.attempts(list(rollouts))}
    taken: dict[AttemptId, TakenRollout] = {}
    for one in members:
        rollout, attempt = rollouts.get(one.rollout_id), attempts.get(one.attempt_id)
        if rollout is None or attempt is None:
            raise StoreError(
                f"the ledger of run {run!r} gives rollout {one.rollout_id!r} to iteration {iteration},"
                " but the store has no such rollout or attempt; the store is damaged or was edited"
            )
        scored = structs.replace(rollout, reward=one.reward)
        taken[one.attempt_id] = TakenRollout(scored, attempt, one.reward, one.events)
    groups = [
        TakenGroup(entry.group_id, tuple(taken[one.attempt_id] for one in entry.members))
        for entry in entries
    ]
    return await read_traces(store, groups)


def late_rewards(entries: Sequence[LedgerEntry], record: AttemptRecord) -> list[RewardEvent]:
    """The rewards that came after an iteration was given the attempt: stored, and not trained."""
    counted = {one.attempt_id: one.events for entry in entries for one in entry.members}
    later = record.events[counted.get(record.attempt.id, len(record.events)) :]
    return [event for event in later if isinstance(event, RewardEvent)]


def outline(transitions: Sequence[Transition]) -> list[tuple[int, Transition]]:
    """The tree of an attempt's steps from the top down: how deep each is, 0 at the top, and the step.

    A step whose parent is unknown stands at the top, and so does the first one of a circle. Siblings are in order
    of their start.
    """
    children: dict[StepId | None, list[Transition]] = defaultdict(list)
    known = {one.step_id for one in transitions}
    for one in transitions:
        children[one.parent_id if one.parent_id in known else None].append(one)
    drawn: dict[StepId, tuple[int, Transition]] = {}
    for top in (*children[None], *transitions):
        waiting = [(0, top)]
        while waiting:
            depth, one = waiting.pop()
            if one.step_id not in drawn:
                drawn[one.step_id] = (depth, one)
                waiting += [(depth + 1, child) for child in reversed(children[one.step_id])]
    return list(drawn.values())


def agent_path(step: Transition, steps: Mapping[StepId, Transition]) -> list[str]:
    """The agents around a step, the outermost first, and its own last, as `capture.context.agent_path` says them live.

    Args:
        step: one of the attempt's.
        steps: all of the attempt's that are known, by id; the path ends above where a parent is not among them,
            unless the call said itself which agents were around it.
    """
    names: list[str] = []
    seen: set[StepId] = set()
    one: Transition | None = step
    while one is not None and one.step_id not in seen:
        seen.add(one.step_id)
        if one.agent is not None and one.agent != (names or [None])[-1]:
            names.append(one.agent)
        if one.within:
            return [*one.within, *names[::-1]]
        one = None if one.parent_id is None else steps.get(one.parent_id)
    return names[::-1]


async def read_attempts(store: Store, rollouts: Sequence[Rollout]) -> list[list[AttemptRecord]]:
    """Per rollout, all its attempts, oldest first; a rollout that nobody claimed yet gives []."""
    if not rollouts:
        return []
    attempts = await store.attempts([rollout.id for rollout in rollouts])
    events = await _read_events(store, [attempt.id for attempt in attempts])
    records: dict[RolloutId, list[AttemptRecord]] = {rollout.id: [] for rollout in rollouts}
    by_id = {rollout.id: rollout for rollout in rollouts}
    for attempt, happened in zip(attempts, events, strict=True):
        rollout = by_id[attempt.rollout_id]
        records[rollout.id].append(
            AttemptRecord(rollout, attempt, tuple(happened), assemble(rollout, attempt, happened))
        )
    return [records[rollout.id] for rollout in rollouts]


async def read_parts(store: Store, rollouts: Sequence[RolloutId]) -> dict[str, float]:
    """The mean of each part of the rewards of rollouts that succeeded, over those that have it.

    Read a few at a time: what else an attempt holds may be large.
    """
    parts: list[dict[str, float]] = []
    for start in range(0, len(rollouts), _ROLLOUTS_PER_LOOK):
        attempts = await store.attempts(rollouts[start : start + _ROLLOUTS_PER_LOOK])
        good = [one.id for one in attempts if one.state is AttemptState.SUCCEEDED]
        parts += [reward_parts(events) for events in await _read_events(store, good)]
    return mean_parts(parts)


async def _read_events(store: Store, attempt_ids: Sequence[AttemptId]) -> list[list[Event]]:
    events: list[list[Event]] = []
    for start in range(0, len(attempt_ids), _ATTEMPTS_PER_READ):
        events += await store.events(attempt_ids[start : start + _ATTEMPTS_PER_READ])
    return events
