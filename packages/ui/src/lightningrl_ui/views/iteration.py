"""An iteration: its groups, each as the rewards of its members, and why one taught nothing."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from lightningrl.metrics import MetricLine, seen_rewards
from lightningrl.schema import Attempt, GroupId, Mode, Rollout, RolloutId, RolloutState
from lightningrl.store import LedgerEntry, RolloutQuery, Store
from lightningrl_ui.run_files import metric_lines
from lightningrl_ui.sources import Run


class Verdict(StrEnum):
    """What became of a group."""

    MIXED = "mixed"
    """Its rewards differ, so it teaches."""
    FLAT = "flat"
    SOLVED = "solved"
    SKIPPED = "skipped"
    FAILED = "failed"
    """No member succeeded."""
    OPEN = "open"
    """Members are still to run, or await rewards."""
    SCORED = "scored"
    """Not of training, so nothing is compared."""


@dataclass(frozen=True)
class Member:
    """One rollout of a group."""

    rollout: Rollout
    reward: float | None
    """What counts: as the ledger took it, else its final reward now."""
    failure: str | None
    """Of a rollout that failed: kind and message."""


@dataclass(frozen=True)
class GroupLine:
    """One group."""

    group_id: GroupId
    task_id: str
    variant: str
    place: int
    """In order of enqueueing, from 0."""
    members: tuple[Member, ...]
    mean: float | None
    spread: float | None
    """Standard deviation of the members' rewards."""
    verdict: Verdict
    why: str
    """In a sentence; empty for a group that teaches."""

    @property
    def failed(self) -> int:
        """How many of its members failed."""
        return sum(one.rollout.state is RolloutState.FAILED for one in self.members)


_ORDERS = {
    "place": lambda one: one.place,
    "task": lambda one: one.task_id,
    "mean": lambda one: -1e300 if one.mean is None else one.mean,
    "spread": lambda one: -1.0 if one.spread is None else one.spread,
    "failed": lambda one: one.failed,
    "verdict": lambda one: one.verdict.value,
}
ORDERS = tuple(_ORDERS)
"""What groups can be sorted by."""


def sorted_groups(groups: Sequence[GroupLine], order: str, *, descending: bool) -> list[GroupLine]:
    """The groups in an order; of an unknown name in that of enqueueing."""
    return sorted(groups, key=_ORDERS.get(order, _ORDERS["place"]), reverse=descending)


async def group_lines(
    store: Store, run: Run, mode: Mode, iteration: int, *, group: GroupId | None = None
) -> list[GroupLine]:
    """The groups of an iteration's mode, or one of them, in order of enqueueing."""
    rollouts = await store.rollouts(
        RolloutQuery(run=run.name, mode=mode, iteration=iteration, group_id=group)
    )
    failed = [one.id for one in rollouts if one.state is RolloutState.FAILED]
    failures = _failures(await store.attempts(failed))
    trained = mode in (Mode.TRAIN, Mode.LIVE)
    entries = await store.ledger(run.name, iteration=iteration, group_id=group) if trained else []
    ledger = {one.group_id: one for one in entries}
    taken = {one.rollout_id: one.reward for entry in ledger.values() for one in entry.members}
    of_group: dict[GroupId, list[Member]] = {}
    for one in rollouts:
        reward = taken.get(one.id, one.reward)
        of_group.setdefault(one.spec.group_id, []).append(Member(one, reward, failures.get(one.id)))
    best = _best(run, iteration, list(of_group.values())) if trained else None
    return [
        _line(place, ident, members, ledger.get(ident), best, trained=trained)
        for place, (ident, members) in enumerate(of_group.items())
    ]


def _failures(attempts: Sequence[Attempt]) -> dict[RolloutId, str]:
    """Of each rollout how its latest failed attempt ended; they come in order of their numbers."""
    return {
        one.rollout_id: f"{one.failure.kind.value}: {one.failure.message}"
        for one in attempts
        if one.failure is not None
    }


def _best(run: Run, iteration: int, groups: Sequence[Sequence[Member]]) -> float | None:
    """The best reward that the run had seen by then. `None`: it had seen one alone."""
    lines: list[MetricLine] = metric_lines(run.folder)
    now = [one.reward for members in groups for one in members if one.reward is not None]
    before = [line for line in lines if line["iteration"] < iteration]
    worst, best = seen_rewards(before, now)
    return best if worst < best else None


def _line(
    place: int,
    ident: GroupId,
    members: list[Member],
    entry: LedgerEntry | None,
    best: float | None,
    *,
    trained: bool,
) -> GroupLine:
    members.sort(key=lambda one: one.rollout.spec.member)
    rewards = [one.reward for one in members if one.reward is not None]
    verdict, why = _verdict(members, rewards, entry, best, trained=trained)
    spec = members[0].rollout.spec
    return GroupLine(
        group_id=ident,
        task_id=spec.task_id,
        variant=spec.variant,
        place=place,
        members=tuple(members),
        mean=statistics.fmean(rewards) if rewards else None,
        spread=_spread(rewards) if rewards else None,
        verdict=verdict,
        why=why,
    )


def _spread(rewards: Sequence[float]) -> float:
    """Their standard deviation, of floats alone: `statistics.pstdev` counts in fractions, which takes 30 times as long."""
    mean = statistics.fmean(rewards)
    equal = min(rewards) == max(rewards)
    return 0.0 if equal else statistics.fmean((one - mean) ** 2 for one in rewards) ** 0.5


def _verdict(
    members: Sequence[Member],
    rewards: Sequence[float],
    entry: LedgerEntry | None,
    best: float | None,
    *,
    trained: bool,
) -> tuple[Verdict, str]:
    states = [one.rollout.state for one in members]
    succeeded = states.count(RolloutState.SUCCEEDED)
    flat = len(set(rewards)) < 2
    if entry is not None and entry.status == "skipped":
        if flat and succeeded > 1:
            return Verdict.SKIPPED, f"left out: all {len(rewards)} rewards are {rewards[0]:g}"
        return Verdict.SKIPPED, f"left out: {succeeded} of {len(members)} members can be used"
    if not all(one.rollout.complete for one in members):
        done = sum(one.rollout.complete for one in members)
        return Verdict.OPEN, f"{done} of {len(members)} members are complete"
    if not rewards:
        return Verdict.FAILED, "no member has a reward"
    if not trained:
        return Verdict.SCORED, ""
    if flat and best is not None and rewards[0] == best:
        return Verdict.SOLVED, "all members have the best reward that the run had seen"
    if flat:
        return Verdict.FLAT, "all rewards are equal: compared within the group, they teach nothing"
    return Verdict.MIXED, ""


def scale(groups: Mapping[str, GroupLine] | Sequence[GroupLine]) -> tuple[float, float]:
    """The least and the largest reward shown, for colours; 0 and 1 where there are none."""
    lines = list(groups.values()) if isinstance(groups, Mapping) else groups
    rewards = [one.reward for line in lines for one in line.members if one.reward is not None]
    low, high = min([*rewards, 0.0]), max([*rewards, 0.0])
    return (low, high) if low < high else (low, low + 1.0)
