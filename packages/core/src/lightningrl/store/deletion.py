"""Deletion: the one sanctioned way in which anything leaves the store.

Invariant: what an iteration was given and has not committed stays, and so does what runs. A rollout is
deleted with its attempts, their events and what the ledger says of it, all or nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

from lightningrl.errors import Conflict
from lightningrl.schema import Mode, RolloutId, RolloutState
from lightningrl.store import rows
from lightningrl.store.session import Session


def delete_rollouts(session: Session, rollout_ids: Sequence[RolloutId]) -> int:
    """See `Store.delete_rollouts`."""
    deleted = 0
    for ident in rollout_ids:
        row = session.row("rollout_to_change", id=ident)
        if row is not None:
            _check_free(session, ident, row)
            _delete(session, row[rows.ROLLOUT_PK])
            deleted += 1
    return deleted


def delete_run(session: Session, run: str) -> int:
    """See `Store.delete_run`."""
    ids = [RolloutId(ident) for (ident,) in session.rows("rollout_ids_of_run", run=run)]
    deleted = delete_rollouts(session, ids)
    for statement in ("delete_takes", "delete_policies", "delete_resources"):
        session.run(statement, run=run)
    return deleted


def retire(session: Session, modes: Sequence[Mode], before_us: int, limit: int) -> int:
    """Delete up to `limit` complete rollouts of `modes` that ended before, the oldest first.

    Of training only what its iteration has committed.
    """
    flags = {mode.value: int(mode in modes) for mode in Mode}
    found = session.rows("retired_rollouts", before_us=before_us, limit=limit, **flags)
    return delete_rollouts(session, [RolloutId(ident) for (ident,) in found])


def used_bytes(session: Session) -> int:
    """How much the store holds, what deletion freed excepted."""
    row = session.row("used_bytes")
    assert row is not None, "an aggregate has one row"
    return int(row[0])


def _check_free(session: Session, ident: RolloutId, row: rows.Row) -> None:
    if rows.rollout(row).state is RolloutState.RUNNING:
        raise Conflict(f"rollout {ident!r} runs, so it can't be deleted; cancel it first")
    take = session.row("uncommitted_take_of_rollout", pk=row[rows.ROLLOUT_PK])
    if take is not None:
        raise Conflict(
            f"rollout {ident!r} can't be deleted: iteration {take[0]} was given its group and has not"
            " committed; let it commit, or roll it back first"
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
