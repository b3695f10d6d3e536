"""Deletion: the one sanctioned way in which anything leaves the store.

Invariant: what an iteration was given and has not committed stays, and so does what runs; live rollouts
that were given and not taken go with their whole run alone. A rollout is deleted with its attempts, their
events and what the ledger says of it, all or nothing; an SQLite file is left without a trace of them.
"""

from __future__ import annotations

from collections.abc import Sequence

from lightningrl.errors import Conflict
from lightningrl.schema import Mode, RolloutId, RolloutState
from lightningrl.store import rows
from lightningrl.store.session import Session


def delete_rollouts(session: Session, rollout_ids: Sequence[RolloutId]) -> int:
    """See `Store.delete_rollouts`."""
    session.erase()
    deleted = 0
    for ident in rollout_ids:
        row = _locked(session, ident)
        if row is not None:
            _refuse(ident, _held(session, row) or _given(session, row))
            _delete(session, row[rows.ROLLOUT_PK])
            deleted += 1
    return deleted


def delete_run(session: Session, run: str) -> int:
    """See `Store.delete_run`."""
    session.erase()
    # First: whoever enqueues what is pinned to one is through before it, or finds it gone.
    session.run("delete_resources", run=run)
    deleted = 0
    for (ident,) in session.rows("rollout_ids_of_run", run=run):
        row = _locked(session, ident)
        if row is not None:
            _refuse(ident, _held(session, row))
            _delete(session, row[rows.ROLLOUT_PK])
            deleted += 1
    for statement in ("delete_takes", "delete_policies"):
        session.run(statement, run=run)
    return deleted


def retire(session: Session, modes: Sequence[Mode], before_us: int, limit: int) -> int:
    """Delete up to `limit` complete rollouts of `modes` that ended before, the oldest first.

    Of training only what its iteration has committed. What another process changes meanwhile, so that it
    is to be kept, is passed over.
    """
    session.erase()
    flags = {mode.value: int(mode in modes) for mode in Mode}
    found = session.rows("retired_rollouts", before_us=before_us, limit=limit, **flags)
    deleted = 0
    for (ident,) in found:
        row = _locked(session, ident)
        if row is None or not rows.rollout(row).complete:
            continue
        if not (_held(session, row) or _given(session, row)):
            _delete(session, row[rows.ROLLOUT_PK])
            deleted += 1
    return deleted


def used_bytes(session: Session) -> int:
    """How much the store holds, what deletion freed excepted."""
    row = session.row("used_bytes")
    assert row is not None, "an aggregate has one row"
    return int(row[0])


def _locked(session: Session, ident: RolloutId) -> rows.Row | None:
    """The rollout, to which nobody else does anything until it is deleted; None where it is gone."""
    session.rows("lock_attempts_of_rollout", id=ident)
    return session.row("rollout_to_change", id=ident)


def _refuse(ident: RolloutId, why: str | None) -> None:
    if why is not None:
        raise Conflict(f"rollout {ident!r} can't be deleted: {why}")


def _held(session: Session, row: rows.Row) -> str | None:
    """Why the rollout of `row` stays even where its whole run is to go."""
    if rows.rollout(row).state is RolloutState.RUNNING:
        return "it runs; cancel it first"
    take = session.row("uncommitted_take_of_rollout", pk=row[rows.ROLLOUT_PK])
    if take is None:
        return None
    return (
        f"iteration {take[0]} was given its group and has not committed; let it commit, or roll it"
        " back first"
    )


def _given(session: Session, row: rows.Row) -> str | None:
    """Why a live rollout stays that an iteration was given and may still take, or take again."""
    spec = rows.rollout(row).spec
    if spec.mode is not Mode.LIVE or not spec.iteration:
        return None
    take = session.row("take_of", run=spec.run, iteration=spec.iteration)
    if take is not None and take[0]:
        return None
    return (
        f"iteration {spec.iteration} was given it and has not committed; let it commit, or delete the"
        " whole run"
    )


def _delete(session: Session, rollout: int) -> None:
    attempts: list[int] = [pk for (pk,) in session.rows("attempt_keys_of_rollout", rollout=rollout)]
    for attempt in attempts:
        session.run("allow_deletion", attempt=attempt)
        session.run("delete_events", attempt=attempt)
        # Its key may be given to a new attempt, which must not continue this one's calls.
        session.bases.forget(attempt)
    session.run("delete_awaited_rewards", rollout=rollout)
    session.run("delete_taken_rollout", rollout=rollout)
    session.run("delete_attempts", rollout=rollout)
    session.run("delete_rollout", rollout=rollout)
    for attempt in attempts:
        session.run("end_deletion", attempt=attempt)
