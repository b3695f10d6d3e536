"""A run leaves for another store and arrives there as it was.

Invariant: what is loaded is played again, move by move, by the statements that every attempt went through,
so the store that takes it in holds nothing that it could not have come to by itself.
"""

from __future__ import annotations

from collections.abc import Sequence

from lightningrl.errors import Conflict, NotFound
from lightningrl.schema import TERMINAL, AttemptState, Resource, RolloutId, RolloutState
from lightningrl.store import awaiting, event_log, lifecycle, rows
from lightningrl.store.records import AttemptDump, LedgerEntry, RolloutDump
from lightningrl.store.session import Session, Wake


def dump(session: Session, run: str, after: int, limit: int) -> list[RolloutDump]:
    """See `Store.dump`."""
    found = session.rows("rollouts_to_dump", run=run, after=after, limit=limit)
    return [_dump(session, row) for row in found]


def _dump(session: Session, row: rows.Row) -> RolloutDump:
    pk = row[rows.ROLLOUT_PK]
    deadlines = dict(session.rows("deadlines_of_rollout", rollout=pk))
    attempts = [rows.attempt(one) for one in session.rows("attempts_of_rollout", rollout=pk)]
    return RolloutDump(
        pk,
        rows.rollout(row),
        tuple(
            AttemptDump(
                one, rows.instant(deadlines[one.id]), tuple(event_log.read(session, one.id))
            )
            for one in attempts
        ),
    )


def load_rollout(session: Session, dumped: RolloutDump) -> int:
    """Write a rollout, but not yet that it is complete; 0 where it was there."""
    rollout, spec = dumped.rollout, dumped.rollout.spec
    there = session.row("rollout_to_change", id=spec.id)
    if there is not None:
        if _dump(session, there).attempts != dumped.attempts or rows.rollout(there).spec != spec:
            raise Conflict(f"rollout {spec.id!r} is there and differs; load into an empty store")
        return 0
    lifecycle.insert(session, spec, rows.micros(rollout.created_at))
    row = session.row("rollout_to_change", id=spec.id)
    assert row is not None, "it was inserted in this transaction"
    pk: int = row[rows.ROLLOUT_PK]
    last = len(dumped.attempts)
    for place, attempt in enumerate(dumped.attempts, 1):
        _load_attempt(session, pk, attempt, spec.await_rewards)
        if attempt.attempt.state is not AttemptState.RUNNING and (
            place < last or rollout.state not in TERMINAL
        ):
            session.run("requeue_rollout", pk=pk)
    if rollout.ended_at is not None:
        ended_us = rows.micros(rollout.ended_at)
        session.run("end_rollout", pk=pk, state=rollout.state.value, now_us=ended_us)
    if rollout.state is RolloutState.SUCCEEDED and spec.await_seconds is not None:
        awaiting.limit(session, pk)
    session.run("forgive_rollout", pk=pk, forgiven=rollout.forgiven)
    session.wakes.add(Wake.QUEUED)
    return 1


def _load_attempt(
    session: Session, rollout: int, dumped: AttemptDump, await_rewards: Sequence[str]
) -> None:
    attempt = dumped.attempt
    session.run("start_rollout", pk=rollout)
    session.run(
        "load_attempt",
        id=attempt.id,
        rollout=rollout,
        number=attempt.number,
        worker=attempt.worker,
        lease_us=rows.micros(attempt.lease_expires_at),
        deadline_us=rows.micros(dumped.deadline_at),
        started_us=rows.micros(attempt.started_at),
    )
    row = session.row("attempt_to_end", id=attempt.id)
    assert row is not None, "it was inserted in this transaction"
    awaiting.begin(session, rollout, row[rows.ATTEMPT_PK], await_rewards)
    event_log.append(session, dumped.events)
    if attempt.ended_at is None:
        return
    session.run(
        "end_attempt",
        pk=row[rows.ATTEMPT_PK],
        state=attempt.state.value,
        now_us=rows.micros(attempt.ended_at),
        failure_kind=None if attempt.failure is None else attempt.failure.kind.value,
        failure_message=None if attempt.failure is None else attempt.failure.message,
        output=session.packed(attempt.output),
    )
    if attempt.failure is not None:
        awaiting.failed(session, rollout)


def complete(session: Session, ident: RolloutId) -> int:
    """Give a loaded rollout its place in the order of completion; 0 where it has one.

    Rewards that it still awaits came too late where it was.
    """
    row = session.row("rollout_to_change", id=ident)
    if row is None:
        raise NotFound(f"rollout {ident!r} is complete and was not loaded; load the rollouts first")
    if rows.rollout(row).complete:
        return 0
    awaiting.give_up(session, row[rows.ROLLOUT_PK])
    return 1


def load_resource(session: Session, resource: Resource) -> int:
    """Write a version of a resource; 0 where it was there."""
    there = session.row(
        "resource_version", run=resource.run, name=resource.name, version=resource.version
    )
    if there is not None:
        if rows.resource(there) != resource:
            raise Conflict(
                f"version {resource.version} of resource {resource.name!r} of run {resource.run!r} is"
                " there and differs; load into an empty store"
            )
        return 0
    session.run(
        "insert_resource",
        run=resource.run,
        name=resource.name,
        version=resource.version,
        id=resource.id,
        now_us=rows.micros(resource.created_at),
        value=session.packed(resource.value),
    )
    return 1


def load_entry(session: Session, entry: LedgerEntry, now_us: int) -> int:
    """Write what the ledger says of one group; 0 where it was there."""
    key = {"run": entry.run, "iteration": entry.iteration}
    if session.row("has_taken_group", **key, group_id=entry.group_id) is not None:
        return 0
    if session.row("take_of", **key) is None:
        session.run("insert_take", **key, now_us=now_us)
    group = session.row("insert_taken_group", **key, group_id=entry.group_id, status=entry.status)
    assert group is not None, "an INSERT ... RETURNING returns its row"
    for member in entry.members:
        attempt = session.row("attempt_by_id", id=member.attempt_id)
        if attempt is None:
            raise NotFound(
                f"the ledger names attempt {member.attempt_id!r}, which was not loaded; load the"
                " rollouts first"
            )
        session.run(
            "load_taken_rollout",
            taken_group=group[0],
            rollout=attempt[rows.ATTEMPT_ROLLOUT_PK],
            attempt=attempt[rows.ATTEMPT_PK],
            reward=member.reward,
            events=member.events,
        )
    if entry.committed:
        session.run("commit_take", **key)
    return 1
