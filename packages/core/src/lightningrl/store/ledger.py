"""The training ledger: which groups each iteration was given.

Invariant: what an iteration took is decided once. Taking it again gives the same groups, attempts
and rewards, until the take is rolled back.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import msgspec

from lightningrl.errors import ConfigError, Conflict, NotFound
from lightningrl.schema import (
    AGENT_FAILURES,
    FailureKind,
    GroupId,
    Mode,
    NewRollout,
    Rollout,
    RolloutId,
    RolloutState,
    TakenGroup,
    TakenRollout,
)
from lightningrl.store import rows
from lightningrl.store.records import LedgerEntry, LedgerMember
from lightningrl.store.session import Session


class _Member(msgspec.Struct):
    """A rollout that may be taken."""

    pk: int
    group_id: GroupId
    member: int
    mode: str
    state: str
    reward: float | None
    failure: FailureKind | None
    """Of its last attempt."""
    complete: bool

    def usable(self, failure_reward: float | None) -> bool:
        """Whether it may be taken."""
        if self.state == RolloutState.SUCCEEDED:
            return self.reward is not None
        return failure_reward is not None and self.failed_by_agent

    @property
    def failed_by_agent(self) -> bool:
        """Whether the agent is to blame that it failed."""
        return self.state == RolloutState.FAILED and self.failure in AGENT_FAILURES


def check_iteration(iteration: int) -> None:
    """Refuse what is no training iteration.

    Raises:
        ConfigError: it is below 1.
    """
    if iteration < 1:
        raise ConfigError(f"iteration: training iterations begin at 1, this is {iteration}")


def check(failure_reward: float | None) -> None:
    """Refuse what no rollout can be rewarded with.

    Raises:
        ConfigError: it is not a finite number.
    """
    if failure_reward is not None and not math.isfinite(failure_reward):
        raise ConfigError(f"failure_reward: must be a finite number, not {failure_reward}")


def take(
    session: Session,
    run: str,
    iteration: int,
    min_group: int,
    skip: Sequence[GroupId],
    failure_reward: float | None,
    now_us: int,
) -> list[TakenGroup]:
    """Give complete groups to an iteration; see `Store.take`."""
    session.row("lock_iteration", run=run, iteration=iteration)
    if session.row("take_of", run=run, iteration=iteration) is None:
        _lock(session, run, iteration)
        groups = _groups(session, run, iteration)
        if not groups:
            return []
        _check_complete(groups, run, iteration)
        session.run("insert_take", run=run, iteration=iteration, now_us=now_us)
        for group_id, members in groups.items():
            usable = [one for one in members if one.usable(failure_reward)]
            least = 1 if members[0].mode == Mode.LIVE else max(min_group, 1)
            taken = len(usable) >= least and group_id not in skip
            chosen = usable if taken else []
            _record(session, run, iteration, group_id, chosen, failure_reward)
    return _taken(session, run, iteration)


def _lock(session: Session, run: str, iteration: int) -> None:
    """Let nobody append to, try again or delete what the iteration may take, until it has."""
    session.rows("lock_attempts_to_take", run=run, iteration=iteration)
    session.rows("lock_members_to_take", run=run, iteration=iteration)
    # Those too that began before their rollouts were locked.
    session.rows("lock_attempts_to_take", run=run, iteration=iteration)


def _groups(session: Session, run: str, iteration: int) -> dict[GroupId, list[_Member]]:
    """Group -> members, both in order: of enqueueing, of `member`."""
    groups: dict[GroupId, list[_Member]] = {}
    for row in session.rows("members_to_take", run=run, iteration=iteration):
        *fields, failure, complete = row
        kind = None if failure is None else FailureKind(failure)
        member = _Member(*fields, failure=kind, complete=bool(complete))
        groups.setdefault(member.group_id, []).append(member)
    for members in groups.values():
        members.sort(key=lambda one: one.member)
    return groups


def _check_complete(groups: dict[GroupId, list[_Member]], run: str, iteration: int) -> None:
    for group_id, members in groups.items():
        open_members = sum(not one.complete for one in members)
        if open_members:
            raise Conflict(
                f"group {group_id!r} of run {run!r}, iteration {iteration} is not complete: "
                f"{open_members} of {len(members)} rollouts have not ended or await rewards; wait with `progress`"
            )


def _record(
    session: Session,
    run: str,
    iteration: int,
    group_id: GroupId,
    members: Sequence[_Member],
    failure_reward: float | None,
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
        place = {"taken_group": row[0], "rollout": member.pk}
        if member.failed_by_agent:
            session.run("insert_taken_failure", **place, reward=failure_reward)
        else:
            session.run("insert_taken_rollout", **place)


def _taken(session: Session, run: str, iteration: int) -> list[TakenGroup]:
    groups: list[TakenGroup] = []
    for pk, group_id in session.rows("taken_groups", run=run, iteration=iteration):
        found = session.rows("taken_rollouts", taken_group=pk)
        if found:  # unless all of a committed group were deleted
            members = tuple(_taken_rollout(session, *row) for row in found)
            groups.append(TakenGroup(GroupId(group_id), members))
    return groups


def _taken_rollout(
    session: Session, rollout_pk: int, attempt_pk: int, reward: float, events: int
) -> TakenRollout:
    rollout_row: Any = session.row("rollout_by_pk", pk=rollout_pk)
    attempt_row: Any = session.row("attempt_by_pk", pk=attempt_pk)
    # A reward that came later must not change what was taken.
    rollout = msgspec.structs.replace(rows.rollout(rollout_row), reward=reward)
    return TakenRollout(rollout, rows.attempt(attempt_row), reward, events)


def give_live(
    session: Session, run: str, iteration: int, rollout_ids: Sequence[RolloutId]
) -> list[RolloutId]:
    """Give live rollouts to an iteration; see `Store.give_live`. The iteration was checked."""
    session.row("lock_iteration", run=run, iteration=iteration)
    if not _decided(session, run, iteration):
        for ident in dict.fromkeys(rollout_ids):
            found = session.row("rollout_to_change", id=ident)
            if found is None:
                raise NotFound(f"there is no rollout {ident!r}, so iteration {iteration} got none")
            _check_giveable(rows.rollout(found), run, iteration)
            session.run("give_rollout", pk=found[rows.ROLLOUT_PK], iteration=iteration)
    return _live_of(session, run, iteration)


def _decided(session: Session, run: str, iteration: int) -> bool:
    """Whether it stands already which live rollouts the iteration has."""
    taken = session.row("take_of", run=run, iteration=iteration)
    return taken is not None or bool(_live_of(session, run, iteration))


def _live_of(session: Session, run: str, iteration: int) -> list[RolloutId]:
    found = session.rows("live_of_iteration", run=run, iteration=iteration)
    return [RolloutId(ident) for (ident,) in found]


def _check_giveable(rollout: Rollout, run: str, iteration: int) -> None:
    wrong = ""
    if rollout.spec.mode is not Mode.LIVE:
        wrong = f"it is no live rollout but of mode {rollout.spec.mode.value!r}"
    elif rollout.spec.run != run:
        wrong = f"it is of run {rollout.spec.run!r}"
    elif rollout.spec.iteration:
        wrong = f"iteration {rollout.spec.iteration} was given it"
    elif not rollout.complete:
        wrong = "it has not ended, or awaits rewards"
    if wrong:
        raise Conflict(
            f"iteration {iteration} of run {run!r} can't be given {rollout.id!r}: {wrong}"
        )


def iteration_of_live(session: Session, spec: NewRollout) -> int | None:
    """The iteration that has taken a live rollout, deleted since or not. `None`: none has."""
    if spec.mode is not Mode.LIVE:
        return None
    row = session.row("take_of_group", run=spec.run, group_id=spec.group_id)
    return None if row is None else row[0]


def commit(session: Session, run: str, iteration: int) -> None:
    """Mark a take as trained; see `Store.commit`."""
    if not session.run("commit_take", run=run, iteration=iteration):
        raise NotFound(f"run {run!r} took nothing for iteration {iteration}; call `take` first")


def roll_back(session: Session, run: str, after: int) -> list[int]:
    """Forget later takes; see `Store.roll_back`."""
    return sorted(
        iteration for (iteration,) in session.rows("roll_back_takes", run=run, after=after)
    )


def entries(
    session: Session, run: str, iteration: int | None, group_id: GroupId | None
) -> list[LedgerEntry]:
    """The ledger of a run; see `Store.ledger`."""
    filters: dict[str, Any] = {"iteration": iteration, "group": group_id}
    filters = {name: value for name, value in filters.items() if value is not None}
    parts = ["select_ledger", *(f"and_ledger_{name}" for name in filters), "in_ledger_order"]
    found: dict[int, tuple[rows.Row, list[LedgerMember]]] = {}
    for pk, at, group, status, committed, *member in session.selected(
        parts, {"run": run, **filters}
    ):
        members = found.setdefault(pk, ((at, group, status, committed), []))[1]
        if member[0] is not None:  # a skipped group has none
            members.append(LedgerMember(*member))
    return [
        LedgerEntry(
            run=run,
            iteration=at,
            group_id=GroupId(group),
            status=status,
            members=tuple(members),
            committed=bool(committed),
        )
        for (at, group, status, committed), members in found.values()
    ]
