"""Traces: what the store holds of attempts, read and assembled for training and for people.

Invariant: these functions only read. The same stored events give the same groups each time, so
`lightningrl show` computes the credit of a past iteration from what the trainer computed it from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lightningrl.errors import StoreError
from lightningrl.schema import (
    Attempt,
    AttemptId,
    AttemptState,
    Event,
    Rollout,
    RolloutId,
    TakenGroup,
)
from lightningrl.store.base import RolloutQuery, Store
from lightningrl.transition import Group, Trace, Transition, assemble

_ATTEMPTS_PER_READ = 256
"""Attempts whose events are read at once, so that an answer over HTTP stays in the megabytes."""


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
            tuple(
                Trace(
                    member.rollout,
                    member.attempt,
                    assemble(member.rollout, member.attempt, next(events)),
                    member.reward,
                )
                for member in group.rollouts
            ),
        )
        for group in taken
    ]


async def read_ledger(store: Store, run: str, iteration: int) -> list[Group]:
    """The groups that an iteration took, as far as the ledger knows; skipped ones are left out.

    Unlike `read_traces` it needs no `take`, so it works on a store that is open for reading only. A
    trace's reward is the newest revision, which may be younger than the one trained on.

    Raises:
        StoreError: the ledger names a rollout that the store has no scored success of.
    """
    entries = [
        entry
        for entry in await store.ledger(run)
        if entry.iteration == iteration and entry.rollout_ids
    ]
    ids = tuple(rollout_id for entry in entries for rollout_id in entry.rollout_ids)
    if not ids:
        return []
    rollouts = await store.rollouts(RolloutQuery(ids=ids))
    traces = {
        record.rollout.id: Trace(
            record.rollout, record.attempt, record.transitions, record.rollout.reward
        )
        for records in await read_attempts(store, rollouts)
        for record in records
        if record.attempt.state is AttemptState.SUCCEEDED and record.rollout.reward is not None
    }
    missing = [one for one in ids if one not in traces]
    if missing:
        raise StoreError(
            f"the ledger of run {run!r} gives rollout {missing[0]!r} to iteration {iteration}, but"
            " the store has no scored success of it; the store is damaged or was edited"
        )
    return [
        Group(entry.group_id, tuple(traces[one] for one in entry.rollout_ids)) for entry in entries
    ]


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


async def _read_events(store: Store, attempt_ids: Sequence[AttemptId]) -> list[list[Event]]:
    events: list[list[Event]] = []
    for start in range(0, len(attempt_ids), _ATTEMPTS_PER_READ):
        events += await store.events(attempt_ids[start : start + _ATTEMPTS_PER_READ])
    return events
