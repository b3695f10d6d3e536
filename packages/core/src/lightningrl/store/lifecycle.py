"""The life of rollouts and attempts: every change of state is one function here.

Invariant: an attempt ends exactly once, and in the transaction that ends it its rollout ends too or
is queued again. Each function runs inside a transaction of the writer.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import msgspec
from msgspec.structs import replace

from lightningrl.errors import Conflict, NotFound, StaleAttempt
from lightningrl.keys import sign_attempt_key
from lightningrl.schema import (
    TERMINAL,
    Attempt,
    AttemptId,
    AttemptState,
    Claim,
    Failure,
    FailureKind,
    Mode,
    NewRollout,
    Rollout,
    RolloutId,
    RolloutState,
    new_id,
)
from lightningrl.store import awaiting, ledger, resources, rows
from lightningrl.store.session import Session, Wake

exact = msgspec.msgpack.Encoder(order="deterministic").encode
"""Data as bytes, for comparing: NaN equals NaN, and the order of keys says nothing."""

KEY_SLACK_SECONDS = 600.0
"""How long an attempt key outlives the deadline that the attempt had when it was claimed: time for
which weight syncs may hold its calls."""


def enqueue(session: Session, rollouts: Sequence[NewRollout], now_us: int) -> int:
    """Add the rollouts whose id is new; see `Store.enqueue`."""
    added = 0
    for new in rollouts:
        if new.mode is Mode.LIVE and new.iteration:
            raise Conflict(
                f"live rollout {new.id!r} names iteration {new.iteration}; enqueue it with 0, and give"
                " it to an iteration when it has ended"
            )
        if _spent(session, new):
            continue
        inserted = insert(session, new, now_us)
        if inserted:
            resources.check_pins(session, new)
        else:
            row = session.row("rollout_spec", id=new.id)
            assert row is not None, f"rollout {new.id!r} was there and is not"
            _check_same(rows.spec(row[0]), new)
        added += inserted
    if added:
        session.wakes.add(Wake.QUEUED)
    return added


def _spent(session: Session, new: NewRollout) -> bool:
    """Whether it is a live rollout that was trained and has been deleted since."""
    taken = ledger.iteration_of_live(session, new) is not None
    return taken and session.row("rollout_spec", id=new.id) is None


def insert(session: Session, new: NewRollout, created_us: int) -> int:
    """Write a rollout as queued; 0 where its id is there."""
    return session.run(
        "insert_rollout",
        id=new.id,
        run=new.run,
        mode=new.mode.value,
        iteration=new.iteration,
        variant=new.variant,
        task_id=new.task_id,
        group_id=new.group_id,
        member=new.member,
        now_us=created_us,
        spec=session.packed(new),
    )


def _check_same(old: NewRollout, new: NewRollout) -> None:
    pairs = {
        "run": (old.run, new.run),
        "mode": (old.mode, new.mode),
        "iteration": (old.iteration, new.iteration),
        "group": (old.group_id, new.group_id),
        "resources": (old.resources, new.resources),
        "task": ((old.task_id, exact(old.task)), (new.task_id, exact(new.task))),
    }
    if old.mode is Mode.LIVE:
        del pairs["iteration"]  # 0 in the request for good; its own since it was given to one
    for field, (before, now) in pairs.items():
        if before != now:
            raise Conflict(
                f"rollout {new.id!r} is there with another {field}; "
                "give each rollout an id of its own (see schema.rollout_id)"
            )


def claim(
    session: Session,
    worker: str,
    run: str | None,
    rollout_ids: Sequence[RolloutId] | None,
    limit: int,
    lease_us: int,
    now: datetime,
    secret: bytes,
) -> list[Claim]:
    """Start attempts at queued rollouts; see `Store.claim`."""
    now_us = rows.micros(now)
    claims: list[Claim] = []
    while True:
        queued = _queued(session, run, rollout_ids, limit - len(claims))
        started = [_start(session, row, worker, now_us, lease_us, secret) for row in queued]
        claims += [one for one in started if one is not None]
        if None not in started:
            break
    _see(session, worker, run, now_us, len(claims))
    return claims


def _queued(
    session: Session, run: str | None, rollout_ids: Sequence[RolloutId] | None, limit: int
) -> list[rows.Row]:
    if rollout_ids is not None:
        return _queued_by_id(session, run, rollout_ids)[:limit]
    if run is None:
        return session.rows("queued", limit=limit)
    return session.rows("queued_of_run", run=run, limit=limit)


def _queued_by_id(
    session: Session, run: str | None, rollout_ids: Sequence[RolloutId]
) -> list[rows.Row]:
    found = [session.row("queued_by_id", id=ident) for ident in dict.fromkeys(rollout_ids)]
    return [row for row in found if row is not None and run in (None, row[rows.ROLLOUT_RUN])]


def _see(session: Session, worker: str, run: str | None, now_us: int, claimed: int) -> None:
    """Note that a worker is there, and how many attempts it has just got."""
    claimed_us = now_us if claimed else None
    session.run(
        "see_worker", name=worker, run=run, now_us=now_us, claimed_us=claimed_us, claimed=claimed
    )


def _start(
    session: Session, row: rows.Row, worker: str, now_us: int, lease_us: int, secret: bytes
) -> Claim | None:
    """Start an attempt at the queued rollout of `row`. `None`: it fails, as what it is pinned to is gone."""
    rollout_pk = row[rows.ROLLOUT_PK]
    queued = rows.rollout(row)
    deadline_us = now_us + rows.seconds_to_us(queued.spec.timeout_seconds)
    # What is written below: reading it back would cost as much as writing it.
    attempt = Attempt(
        id=AttemptId(new_id("a")),
        rollout_id=queued.id,
        number=queued.attempts + 1,
        state=AttemptState.RUNNING,
        worker=worker,
        lease_expires_at=rows.instant(now_us + lease_us),
        started_at=rows.instant(now_us),
        ended_at=None,
        failure=None,
        output=None,
    )
    session.run("start_rollout", pk=rollout_pk)
    attempt_pk = session.insert(
        "insert_attempt",
        id=attempt.id,
        rollout=rollout_pk,
        number=attempt.number,
        worker=worker,
        lease_us=now_us + lease_us,
        deadline_us=deadline_us,
        now_us=now_us,
    )
    assert attempt_pk is not None, f"the fresh id {attempt.id!r} is taken"
    awaiting.begin(session, rollout_pk, attempt_pk, queued.spec.await_rewards)
    expiry = rows.instant(deadline_us + rows.seconds_to_us(KEY_SLACK_SECONDS))
    rollout = replace(queued, state=RolloutState.RUNNING, attempts=attempt.number, reward=None)
    key = sign_attempt_key(secret, attempt.id, expiry)
    try:
        return Claim(rollout, attempt, key, resources.pinned(session, queued.spec))
    except NotFound as gone:
        failure = Failure(FailureKind.INFRASTRUCTURE, str(gone))
        _end_attempt(session, attempt_pk, rollout_pk, AttemptState.FAILED, failure, None, now_us)
        _end_rollout(session, rollout_pk, RolloutState.FAILED, now_us)
        return None


def heartbeat(
    session: Session, worker: str, attempt_ids: Sequence[AttemptId], lease_us: int, now_us: int
) -> list[AttemptId]:
    """Renew leases; see `Store.heartbeat`."""
    _see(session, worker, None, now_us, 0)
    return [
        ident
        for ident in attempt_ids
        if not session.run("renew_lease", id=ident, worker=worker, lease_us=now_us + lease_us)
    ]


def check_finish(attempt_id: AttemptId, state: AttemptState, failure: Failure | None) -> None:
    """Refuse what no attempt may end with.

    Raises:
        Conflict: `state` is no end state, or does not go with `failure`.
    """
    if state is AttemptState.RUNNING:
        raise Conflict(f"attempt {attempt_id!r} can't be finished as running; name an end state")
    if (state is AttemptState.SUCCEEDED) != (failure is None):
        word = "needs" if failure is None else "must not have"
        raise Conflict(f"attempt {attempt_id!r} finished as {state.value} {word} a failure")


def finish(
    session: Session,
    attempt_id: AttemptId,
    state: AttemptState,
    failure: Failure | None,
    output: Any,
    now_us: int,
) -> Rollout:
    """End an attempt; see `Store.finish`. The arguments were checked."""
    row = _attempt_row(session, attempt_id)
    attempt = rows.attempt(row)
    if attempt.state is AttemptState.RUNNING:
        _end(session, row, state, failure, output, now_us)
    elif attempt.state is not state or _kind(attempt.failure) is not _kind(failure):
        why = f" ({attempt.failure.message})" if attempt.failure else ""
        raise StaleAttempt(
            f"attempt {attempt_id!r} ended before as {attempt.state.value}{why}, "
            f"so it can't be finished as {state.value}; drop its result"
        )
    return _rollout(session, row[rows.ATTEMPT_ROLLOUT_PK])


def _kind(failure: Failure | None) -> FailureKind | None:
    return None if failure is None else failure.kind


def _end(
    session: Session,
    row: rows.Row,
    state: AttemptState,
    failure: Failure | None,
    output: Any,
    now_us: int,
) -> None:
    """End the running attempt of `row`, and its rollout or queue that again."""
    attempt_pk, rollout_pk = row[rows.ATTEMPT_PK], row[rows.ATTEMPT_ROLLOUT_PK]
    _end_attempt(session, attempt_pk, rollout_pk, state, failure, output, now_us)
    if failure is None:
        _end_rollout(session, rollout_pk, RolloutState.SUCCEEDED, now_us)
    elif failure.kind is FailureKind.CANCELLED:
        _end_rollout(session, rollout_pk, RolloutState.CANCELLED, now_us)
    elif _again(session, rollout_pk, failure.kind):
        session.run("requeue_rollout", pk=rollout_pk)
        session.wakes.add(Wake.QUEUED)
    else:
        _end_rollout(session, rollout_pk, RolloutState.FAILED, now_us)


def _end_attempt(
    session: Session,
    attempt_pk: int,
    rollout_pk: int,
    state: AttemptState,
    failure: Failure | None,
    output: Any,
    now_us: int,
) -> None:
    session.run(
        "end_attempt",
        pk=attempt_pk,
        state=state.value,
        now_us=now_us,
        failure_kind=None if failure is None else failure.kind.value,
        failure_message=None if failure is None else failure.message,
        output=session.packed(output),
    )
    if failure is not None:
        awaiting.failed(session, rollout_pk)


def _again(session: Session, rollout_pk: int, kind: FailureKind) -> bool:
    found = session.rows("failures_of_rollout", rollout=rollout_pk)
    failures = [FailureKind(one) for (one,) in found]
    return _rollout(session, rollout_pk).spec.retry.again(kind, failures)


def _end_rollout(session: Session, rollout_pk: int, state: RolloutState, now_us: int) -> None:
    session.run("end_rollout", pk=rollout_pk, state=state.value, now_us=now_us)
    awaiting.ended(session, rollout_pk)


def cancel(session: Session, rollout_ids: Sequence[RolloutId], now_us: int) -> int:
    """Cancel rollouts; see `Store.cancel`."""
    cancelled = 0
    failure = Failure(FailureKind.CANCELLED, "the rollout was cancelled")
    for ident in rollout_ids:
        found = session.row("rollout_to_change", id=ident)
        if found is None:
            raise NotFound(f"there is no rollout {ident!r}, so none was cancelled")
        if rows.rollout(found).state in TERMINAL:
            continue
        running = session.row("running_attempt_to_end", rollout=found[rows.ROLLOUT_PK])
        if running is None:
            _end_rollout(session, found[rows.ROLLOUT_PK], RolloutState.CANCELLED, now_us)
        else:
            _end(session, running, AttemptState.FAILED, failure, None, now_us)
        cancelled += 1
    return cancelled


def retry(session: Session, rollout_ids: Sequence[RolloutId]) -> int:
    """Queue failed rollouts again; see `Store.retry`."""
    queued = 0
    for ident in rollout_ids:
        found = session.row("rollout_to_change", id=ident)
        if found is None:
            raise NotFound(f"there is no rollout {ident!r}, so none was queued again")
        rollout = rows.rollout(found)
        if rollout.state is not RolloutState.FAILED or rollout.spec.mode is Mode.LIVE:
            continue
        take = session.row("take_of_rollout", pk=found[rows.ROLLOUT_PK])
        if take is not None:
            raise Conflict(
                f"rollout {ident!r} can't be tried again: iteration {take[0]} was given its group as"
                " it is; roll that take back first"
            )
        session.run("retry_rollout", pk=found[rows.ROLLOUT_PK])
        queued += 1
    if queued:
        session.wakes.add(Wake.QUEUED)
    return queued


def expire(session: Session, now_us: int) -> int:
    """End attempts whose lease or time ran out, whichever was first; see `Store.expire`."""
    due = session.rows("due_attempts", now_us=now_us)
    for ident, lease_us, deadline_us in due:
        row = _attempt_row(session, AttemptId(ident))
        attempt = rows.attempt(row)
        if deadline_us <= lease_us:
            state = AttemptState.TIMED_OUT
            failure = Failure(FailureKind.TIMEOUT, "the attempt ran longer than its rollout allows")
        else:
            state = AttemptState.LOST
            failure = Failure(
                FailureKind.LOST, f"worker {attempt.worker!r} stopped renewing its lease"
            )
        _end(session, row, state, failure, None, now_us)
    awaiting.expire(session, now_us)
    return len(due)


def extend(session: Session, attempt_ids: Sequence[AttemptId], seconds: float) -> None:
    """Push deadlines back; see `Store.extend`."""
    for ident in attempt_ids:
        session.run("extend_deadline", id=ident, added_us=rows.seconds_to_us(seconds))


def renew_all_leases(session: Session, lease_us: int, now_us: int) -> int:
    """Extend all leases; see `Store.renew_all_leases`."""
    return session.run("renew_all_leases", lease_us=now_us + lease_us)


def _rollout(session: Session, pk: int) -> Rollout:
    row = session.row("rollout_by_pk", pk=pk)
    assert row is not None, f"the rollout with key {pk} is referred to but not there"
    return rows.rollout(row)


def _attempt_row(session: Session, attempt_id: AttemptId) -> rows.Row:
    row = session.row("attempt_to_end", id=attempt_id)
    if row is None:
        raise NotFound(f"there is no attempt {attempt_id!r}; use the id that the claim gave")
    return row
