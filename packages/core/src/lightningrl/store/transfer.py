"""A run leaves for another store and arrives there as it was.

Invariant: what is loaded is played again, move by move, by the statements that every attempt went through,
so the store that takes it in holds nothing that it could not have come to by itself.
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec.structs import replace

from lightningrl.errors import Conflict, NotFound
from lightningrl.schema import TERMINAL, AttemptState, Mode, Resource, RolloutId, RolloutState
from lightningrl.store import awaiting, event_log, ledger, lifecycle, resources, rows
from lightningrl.store.records import AttemptDump, LedgerEntry, LedgerMember, RolloutDump
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
    """Write a rollout, but not yet that it is complete; 0 where it was there, however it went on."""
    rollout, spec = dumped.rollout, dumped.rollout.spec
    there = session.row("rollout_to_change", id=spec.id)
    if there is not None:
        if not _went_on(session, dumped, _dump(session, there)):
            raise Conflict(f"rollout {spec.id!r} is there and differs; load into an empty store")
        return 0
    spent = ledger.iteration_of_live(session, spec)
    if spent is not None:
        if not rollout.complete:
            return 0
        spec = replace(spec, iteration=spent)
    resources.check_pins(session, spec)
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
    if rollout.complete:
        session.run("await_nothing", rollout=pk)  # what it still awaited came too late
    elif rollout.state is RolloutState.SUCCEEDED:
        awaiting.limit(session, pk)
    session.run("forgive_rollout", pk=pk, forgiven=rollout.forgiven)
    session.wakes.add(Wake.QUEUED)
    return 1


def _went_on(session: Session, dumped: RolloutDump, there: RolloutDump) -> bool:
    """Whether what is there is what was dumped, or what became of it since."""
    old, new = dumped.rollout, there.rollout
    spec = old.spec
    if spec.mode is Mode.LIVE and not spec.iteration:
        spec = replace(spec, iteration=new.spec.iteration)  # it was given to one
    if lifecycle.exact((spec, old.created_at)) != lifecycle.exact((new.spec, new.created_at)):
        return False
    attempts = there.attempts[: len(dumped.attempts)]
    if not all(map(_attempt_went_on, dumped.attempts, attempts)):
        return False
    if len(attempts) < len(dumped.attempts) or new.forgiven < old.forgiven:
        return False
    if old.state not in TERMINAL or new.forgiven > old.forgiven:  # an operator's retry
        return True
    awaits = awaiting.awaits(session, there.cursor)
    return (old.state, old.ended_at) == (new.state, new.ended_at) and not (old.complete and awaits)


def _attempt_went_on(dumped: AttemptDump, there: AttemptDump) -> bool:
    old, new = dumped.attempt, there.attempt
    if old.state is AttemptState.RUNNING:
        fixed = (old.id, old.number, old.worker, old.started_at)
        same = fixed == (new.id, new.number, new.worker, new.started_at)
    else:
        same = lifecycle.exact((old, dumped.deadline_at)) == lifecycle.exact(
            (new, there.deadline_at)
        )
    return same and lifecycle.exact(dumped.events) == lifecycle.exact(
        there.events[: len(dumped.events)]
    )


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
    """Give a loaded rollout its place in the order of completion.

    0 where it has one, or was queued again since by an operator's retry.
    """
    row = session.row("rollout_to_change", id=ident)
    if row is None:
        raise NotFound(f"rollout {ident!r} is complete and was not loaded; load the rollouts first")
    rollout, pk = rows.rollout(row), row[rows.ROLLOUT_PK]
    if rollout.complete or rollout.ended_at is None or awaiting.awaits(session, pk):
        return 0
    awaiting.ended(session, pk)
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
    """Write what the ledger says of one group; 0 where all of it was there."""
    key = {"run": entry.run, "iteration": entry.iteration}
    take = session.row("take_of", **key)
    if take is None:
        session.run("insert_take", **key, now_us=now_us)
    committed = take is not None and bool(take[0])
    group = session.row("taken_group_to_load", **key, group_id=entry.group_id)
    new = group is None
    if group is None:
        group = session.row(
            "insert_taken_group", **key, group_id=entry.group_id, status=entry.status
        )
        assert group is not None, "an INSERT ... RETURNING returns its row"
        missing = entry.members
    else:
        missing = _missing(session, entry, group, committed=committed or entry.committed)
    for member in missing:
        _load_member(session, group[0], member)
    if entry.committed and not committed:
        session.run("commit_take", **key)
        new = True
    return int(new or bool(missing))


def _missing(
    session: Session, entry: LedgerEntry, group: rows.Row, *, committed: bool
) -> list[LedgerMember]:
    """The members that an entry has and the group there lacks: a committed one may have lost some by deletion."""
    pk, status = group
    there = {one[0]: LedgerMember(*one) for one in session.rows("members_of_group", group=pk)}
    entered = {one.rollout_id: one for one in entry.members}
    differs = any(there[ident] != entered[ident] for ident in there.keys() & entered.keys())
    if status != entry.status or differs or (there.keys() != entered.keys() and not committed):
        raise Conflict(
            f"the ledger of run {entry.run!r} has group {entry.group_id!r} of iteration"
            f" {entry.iteration} and differs; load into an empty store"
        )
    return [one for ident, one in entered.items() if ident not in there]


def _load_member(session: Session, group: int, member: LedgerMember) -> None:
    attempt = session.row("attempt_by_id", id=member.attempt_id)
    if attempt is None:
        raise NotFound(
            f"the ledger names attempt {member.attempt_id!r}, which was not loaded; load the"
            " rollouts first"
        )
    session.run(
        "load_taken_rollout",
        taken_group=group,
        rollout=attempt[rows.ATTEMPT_ROLLOUT_PK],
        attempt=attempt[rows.ATTEMPT_PK],
        reward=member.reward,
        events=member.events,
    )
