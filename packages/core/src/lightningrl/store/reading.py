"""What is read from the store, each inside one read transaction: a snapshot."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from lightningrl.errors import NotFound
from lightningrl.schema import (
    Attempt,
    AttemptId,
    Mode,
    Progress,
    Rollout,
    RolloutId,
    RolloutState,
    Worker,
)
from lightningrl.store import rows
from lightningrl.store.base import Ended, RolloutQuery, RunSummary
from lightningrl.store.session import Session


def rollouts(session: Session, query: RolloutQuery) -> list[Rollout]:
    """See `Store.rollouts`."""
    values = {
        "run": query.run,
        "mode": query.mode,
        "iteration": query.iteration,
        "variant": query.variant,
        "group_id": query.group_id,
        "states": msgspec.json.encode(query.states).decode() if query.states else None,
        "ids": msgspec.json.encode(query.ids).decode() if query.ids else None,
    }
    filters = [f"and_{name}" for name, value in values.items() if value is not None]
    order = "newest_first" if query.newest_first else "oldest_first"
    page = {"limit": -1 if query.limit is None else query.limit, "offset": query.offset}
    found = session.selected(["select_rollouts", *filters, order], values | page)
    return [rows.rollout(row) for row in found]


def attempts(session: Session, rollout_ids: Sequence[RolloutId]) -> list[Attempt]:
    """See `Store.attempts`."""
    found: list[Attempt] = []
    for ident in rollout_ids:
        row = session.row("rollout_by_id", id=ident)
        if row is None:
            raise NotFound(f"there is no rollout {ident!r}")
        pk = row[rows.ROLLOUT_PK]
        found += [rows.attempt(one) for one in session.rows("attempts_of_rollout", rollout=pk)]
    return found


def attempt(session: Session, attempt_id: AttemptId) -> tuple[Rollout, Attempt]:
    """See `Store.attempt`."""
    row = session.row("attempt_by_id", id=attempt_id)
    if row is None:
        raise NotFound(f"there is no attempt {attempt_id!r}")
    rollout = session.row("rollout_by_pk", pk=row[rows.ATTEMPT_ROLLOUT_PK])
    assert rollout is not None, f"attempt {attempt_id!r} has no rollout"
    return rows.rollout(rollout), rows.attempt(row)


def ended(session: Session, run: str, after: int, limit: int) -> list[Ended]:
    """See `Store.ended`."""
    found = session.rows("ended_rollouts", run=run, after=after, limit=limit)
    return [Ended(row[rows.ROLLOUT_ENDED_SEQ], rows.rollout(row)) for row in found]


def progress(
    session: Session, run: str, mode: Mode, iteration: int, variant: str | None
) -> Progress:
    """See `Store.progress`; never waits."""
    found = session.rows("progress", run=run, mode=mode, iteration=iteration, variant=variant)
    counts = {state: count for state, count, _, _ in found}
    rewards = {state: (total, rewarded) for state, _, total, rewarded in found}
    reward_sum, rewarded = rewards.get(RolloutState.SUCCEEDED, (0.0, 0))
    return Progress(**counts, reward_sum=reward_sum, rewarded=rewarded)


def summary(session: Session, run: str) -> RunSummary:
    """See `Store.summary`."""
    return RunSummary(
        run=run,
        rollouts=dict(session.rows("count_rollouts", run=run)),
        attempts=dict(session.rows("count_attempts", run=run)),
        events=dict(session.rows("count_events", run=run)),
    )


def runs(session: Session) -> list[str]:
    """See `Store.runs`."""
    return [run for (run,) in session.rows("runs")]


def workers(session: Session, since_us: int) -> list[Worker]:
    """See `Store.workers`."""
    return [
        Worker(name, run, rows.instant(seen_us), running)
        for name, run, seen_us, running in session.rows("workers_seen_since", since_us=since_us)
    ]


def secret(session: Session) -> bytes:
    """See `Store.secret`."""
    row = session.row("meta", name="secret")
    assert row is not None, "the secret is made with the store"
    return row[0]
