"""What is read from the store, each inside one read transaction: a snapshot."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from lightningrl.errors import NotFound
from lightningrl.schema import (
    Attempt,
    AttemptId,
    GroupId,
    Mode,
    Progress,
    Rollout,
    RolloutId,
    RolloutState,
    Worker,
)
from lightningrl.store import rows
from lightningrl.store.records import Ended, RolloutOrder, RolloutQuery, RunSummary
from lightningrl.store.session import Session

_ALL = 1 << 62
"""A LIMIT that limits nothing; databases differ in how they say that."""

_OPEN = frozenset({RolloutState.QUEUED, RolloutState.RUNNING})


def rollouts(session: Session, query: RolloutQuery) -> list[Rollout]:
    """See `Store.rollouts`."""
    filters = {
        "run": query.run,
        "mode": query.mode,
        "iteration": query.iteration,
        "variant": query.variant,
        "group_id": query.group_id,
        "task_id": query.task_id,
        "states": _array(query.states) if query.states else None,
        "ids": _array(query.ids) if query.ids else None,
        "failure_kinds": _array(query.failure_kinds) if query.failure_kinds else None,
        "min_reward": query.min_reward,
        "max_reward": query.max_reward,
    }
    values: dict[str, Any] = {name: value for name, value in filters.items() if value is not None}
    parts = [_by_run(query) if name == "run" else f"and_{name}" for name in values]
    if query.states and set(query.states) <= _OPEN:
        parts.append("and_open")
    created = query.order is RolloutOrder.CREATED
    direction = "descending" if query.descending else "ascending"
    order = f"creation_{direction}" if created else direction
    if query.after is not None:
        null = "null_" if query.after.key is None else ""
        parts.append(f"after_{null}{order}")
        values |= {"after_key": query.after.key, "after_id": query.after.id}
    if not created:
        values["order"] = query.order
    values["limit"] = _ALL if query.limit is None else query.limit
    select = "select_rollouts_by_creation" if created else "select_rollouts"
    return _rollouts(session, [select, *parts, order], values)


def _by_run(query: RolloutQuery) -> str:
    """The fragment that says the run, so that the index is read which says most; no database is asked to guess."""
    if query.ids or query.group_id is not None:
        return "and_known_run"
    if query.order is RolloutOrder.CREATED and query.mode is query.iteration is None:
        return "and_whole_run"
    return "and_run"


def _rollouts(session: Session, parts: list[str], values: dict[str, Any]) -> list[Rollout]:
    return [rows.rollout(row) for row in session.selected(parts, values)]


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


class Named(msgspec.Struct):
    """The rollouts that a caller waits for, in the caller's order."""

    ids: list[RolloutId]
    open: int
    """How many are not complete."""


def named(
    session: Session, rollout_ids: Sequence[RolloutId], group_ids: Sequence[GroupId]
) -> Named:
    """What `Store.wait` waits for."""
    found = session.rows("named_rollouts", ids=_array(rollout_ids), group_ids=_array(group_ids))
    complete = {RolloutId(ident): bool(done) for ident, _, _, done in found}
    members: dict[str, list[RolloutId]] = {}
    for ident, group_id, _, _ in sorted(found, key=lambda row: row[2]):
        members.setdefault(group_id, []).append(RolloutId(ident))
    for kind, wanted, known in (("rollout", rollout_ids, complete), ("group", group_ids, members)):
        missing = [one for one in wanted if one not in known]
        if missing:
            raise NotFound(f"there is no {kind} {missing[0]!r}; enqueue it before you wait for it")
    grouped = [ident for group in group_ids for ident in members[group]]
    ids = list(dict.fromkeys([*rollout_ids, *grouped]))
    return Named(ids, sum(not complete[one] for one in ids))


def ended_of(session: Session, ids: Sequence[RolloutId]) -> list[Rollout]:
    """Those of `ids` that are complete, in order."""
    parts = ["select_rollouts_by_creation", "and_ids"]
    found = _rollouts(session, parts, {"ids": _array(ids)})
    ended = {one.id: one for one in found if one.complete}
    return [ended[ident] for ident in ids if ident in ended]


def _array(ids: Sequence[str]) -> str:
    return msgspec.json.encode(ids).decode()


def progress(
    session: Session, run: str, mode: Mode, iteration: int, variant: str | None
) -> Progress:
    """See `Store.progress`; never waits."""
    found = session.rows("progress", run=run, mode=mode, iteration=iteration, variant=variant)
    counts = {row[0]: row[1] for row in found}
    succeeded = {row[0]: row[1:] for row in found}.get(RolloutState.SUCCEEDED, (0, 0.0, 0, 0))
    count, reward_sum, rewarded, complete = succeeded
    return Progress(**counts, reward_sum=reward_sum, rewarded=rewarded, awaiting=count - complete)


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
    held: dict[str, list[AttemptId]] = {}
    found: dict[str, rows.Row] = {}
    for *worker, attempt_id in session.rows("workers_seen_since", since_us=since_us):
        found[worker[0]] = tuple(worker)
        attempts = held.setdefault(worker[0], [])
        if attempt_id is not None:
            attempts.append(AttemptId(attempt_id))
    return [
        Worker(
            name=name,
            run=run,
            first_seen_at=rows.instant(first_us),
            seen_at=rows.instant(seen_us),
            claimed_at=None if claimed_us is None else rows.instant(claimed_us),
            claimed=claimed,
            attempt_ids=tuple(held[name]),
        )
        for name, run, first_us, seen_us, claimed_us, claimed in found.values()
    ]


def secret(session: Session) -> bytes:
    """See `Store.secret`."""
    row = session.row("meta", name="secret")
    assert row is not None, "the secret is made with the store"
    return row[0]
