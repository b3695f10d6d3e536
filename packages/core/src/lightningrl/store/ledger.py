"""The training ledger: which groups each iteration was given.

Invariant: what an iteration took is decided once. Taking it again gives the same groups, attempts
and rewards, until the take is rolled back.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from lightningrl.errors import Conflict, NotFound
from lightningrl.schema import TERMINAL, GroupId, RolloutId, RolloutState, TakenGroup, TakenRollout
from lightningrl.store import rows
from lightningrl.store.base import LedgerEntry
from lightningrl.store.session import Session


class _Member(msgspec.Struct):
    """A rollout that may be taken."""

    pk: int
    group_id: GroupId
    member: int
    state: str
    reward: float | None


def take(
    session: Session,
    run: str,
    iteration: int,
    min_group: int,
    skip: Sequence[GroupId],
    now_us: int,
) -> list[TakenGroup]:
    """Give complete groups to an iteration; see `Store.take`."""
    if session.row("take_of", run=run, iteration=iteration) is None:
        groups = _groups(session, run, iteration)
        if not groups:
            return []
        _check_complete(groups, run, iteration)
        session.run("insert_take", run=run, iteration=iteration, now_us=now_us)
        for group_id, members in groups.items():
            usable = [one for one in members if _is_usable(one)]
            taken = len(usable) >= max(min_group, 1) and group_id not in skip
            _record(session, run, iteration, group_id, usable if taken else [])
    return _taken(session, run, iteration)


def _groups(session: Session, run: str, iteration: int) -> dict[GroupId, list[_Member]]:
    """Group -> members, both in order: of enqueueing, of `member`."""
    groups: dict[GroupId, list[_Member]] = {}
    for row in session.rows("members_to_take", run=run, iteration=iteration):
        member = _Member(*row)
        groups.setdefault(member.group_id, []).append(member)
    for members in groups.values():
        members.sort(key=lambda one: one.member)
    return groups


def _check_complete(groups: dict[GroupId, list[_Member]], run: str, iteration: int) -> None:
    for group_id, members in groups.items():
        open_members = sum(RolloutState(one.state) not in TERMINAL for one in members)
        if open_members:
            raise Conflict(
                f"group {group_id!r} of run {run!r}, iteration {iteration} is not complete: "
                f"{open_members} of {len(members)} rollouts have not ended; wait with `progress`"
            )


def _is_usable(member: _Member) -> bool:
    return member.state == RolloutState.SUCCEEDED and member.reward is not None


def _record(
    session: Session, run: str, iteration: int, group_id: GroupId, members: Sequence[_Member]
) -> None:
    row = session.row(
        "insert_taken_group",
        run=run,
        iteration=iteration,
        group_id=group_id,
        status="taken" if members else "skipped",
    )
    assert row is not None, "an INSERT ... RETURNING returns its row"
    for member in members:
        session.run("insert_taken_rollout", taken_group=row[0], rollout=member.pk)


def _taken(session: Session, run: str, iteration: int) -> list[TakenGroup]:
    groups = session.rows("taken_groups", run=run, iteration=iteration)
    return [
        TakenGroup(
            GroupId(group_id),
            tuple(
                _taken_rollout(session, *row)
                for row in session.rows("taken_rollouts", taken_group=pk)
            ),
        )
        for pk, group_id in groups
    ]


def _taken_rollout(
    session: Session, rollout_pk: int, attempt_pk: int, reward: float
) -> TakenRollout:
    rollout_row: Any = session.row("rollout_by_pk", pk=rollout_pk)
    attempt_row: Any = session.row("attempt_by_pk", pk=attempt_pk)
    # A reward that came later must not change what was taken.
    rollout = msgspec.structs.replace(rows.rollout(rollout_row), reward=reward)
    return TakenRollout(rollout, rows.attempt(attempt_row), reward)


def commit(session: Session, run: str, iteration: int) -> None:
    """Mark a take as trained; see `Store.commit`."""
    if not session.run("commit_take", run=run, iteration=iteration):
        raise NotFound(f"run {run!r} took nothing for iteration {iteration}; call `take` first")


def roll_back(session: Session, run: str, after: int) -> list[int]:
    """Forget later takes; see `Store.roll_back`."""
    return sorted(
        iteration for (iteration,) in session.rows("roll_back_takes", run=run, after=after)
    )


def entries(session: Session, run: str) -> list[LedgerEntry]:
    """The ledger of a run; see `Store.ledger`."""
    return [
        LedgerEntry(
            run=run,
            iteration=iteration,
            group_id=GroupId(group_id),
            status=status,
            rollout_ids=tuple(RolloutId(one) for one in msgspec.json.decode(ids, type=list[str])),
            committed=bool(committed),
        )
        for iteration, group_id, status, committed, ids in session.rows("ledger", run=run)
    ]
