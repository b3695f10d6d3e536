"""Credit by forks: what the steps of a rollout changed, measured by going on from them again.

A fork point f is a state that a member was in when it made a model call. Its branches are rollouts that were given all
that was answered before, and sampled from there on. V(f) is the mean final reward of its branches, the Monte-Carlo
value of the state under the policy that acted. With R the rollout's own final reward, and B the baseline that the
broadcast compares it with (the state in which all members of a group begin), for a decision d of a member:

- before(d): V of its last fork point at or before d; B where there is none
- after(d): V of its first fork point behind d; R where there is none

| method | credit of a member's decision | of a branch's decision |
|---|---|---|
| `vine` | after(d) - before(d) | R - mean R of its siblings |
| `leave_one_out_fork` | R - before(d) | R - mean R of its siblings |

`vine` is VinePPO's advantage, arXiv 2410.01679, eq. 9, with discount 1 and no reward between: V(s_(t+1)) - V(s_t). It
forks every step; where some are forked, the steps between two fork points share the difference of their values, and
credit sums to R - B along every rollout. VinePPO uses the further samples for values alone: here they are trained as
well, by the same formula, for a branch's state has no fork behind it. `leave_one_out_fork` is the leave-one-out
advantage of samples from one recorded state, as C3 has it (arXiv 2603.06859); the member itself is not among the
siblings, so that a rule which looks at the member's own answer (`entropy`) can't bias the mean.

Units are those of the reward; `normalise: std` divides the credit of members and branches by the deviation of the
members' rewards, as the broadcast does, and a group whose members' rewards are all equal by nothing.

Degenerate cases. A member without a fork gets exactly the broadcast, and so does a batch without forks. A branch
without siblings gets 0. What a branch replays gets 0: it is another rollout's. Members whose rewards are all equal
have R = B, and still learn from V of their fork points. A branch whose parent is not among the groups is compared
with its siblings, and not divided.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from lightningrl.conversation.replaying import origin_of
from lightningrl.credit.broadcast import broadcast_advantages
from lightningrl.credit.columns import read_decisions
from lightningrl.credit.compare import EPSILON, counts, deviations, means
from lightningrl.credit.decisions import Decisions, Floats, Labels, Parts, spread
from lightningrl.credit.result import Credit
from lightningrl.credit.rewards import has_step_rewards
from lightningrl.experience.transition import Group
from lightningrl.schema import REPLAYED, AttemptId, CallEvent, ReplayOf, StepId

_WITH_STEP_REWARDS = (
    "steps have rewards, and values by forks are of final rewards alone. Use 'credit: step_reward'"
)

_WITHOUT_FORKS = (
    "no rollout has a branch, so all credit is the broadcast's: each made a single model call, whose samples the group"
    " has already, or no branch could be used. Use 'credit: broadcast'"
)

Form = Literal["std", "mean", "leave_one_out"]
"""Of the broadcast's forms those that are relative to a group."""


@dataclass(frozen=True, eq=False)
class Forks:
    """Where n decisions of M members stand among F fork points."""

    branch: Labels
    """[M] the fork point that a branch begins at; -1 for a member that is no branch."""
    before: Labels
    """[n] the last fork point of its rollout at or before each decision; -1 where there is none. Of a branch's own
    decisions the point that it begins at."""
    after: Labels
    """[n] the first fork point of its rollout behind each decision; -1 where there is none."""
    replayed: NDArray[np.bool_]
    """[n] whether a branch was given the answer again."""
    parent: Labels
    """[F] the member that was forked; -1 where it is not among them."""


def vine(groups: Sequence[Group], *, normalise: Form = "mean") -> Credit:
    """The difference that decisions made to the value of the state, by Monte Carlo; see the module.

    Args:
        groups: any number, of any sizes, those of branches among them.
        normalise: form of the broadcast where no fork is, and of the baseline of a rollout's begin.
    """
    return _by_forks(groups, normalise, values_behind=True)


def leave_one_out_fork(groups: Sequence[Group], *, normalise: Form = "mean") -> Credit:
    """Branches against the mean of their siblings, members against the branches of their last fork; see the module.

    Args:
        groups: any number, of any sizes, those of branches among them.
        normalise: form of the broadcast where no fork is.
    """
    return _by_forks(groups, normalise, values_behind=False)


def _by_forks(groups: Sequence[Group], normalise: Form, *, values_behind: bool) -> Credit:
    decisions, parts = read_decisions(groups), Parts()
    forks = read_forks(groups, decisions)
    advantages = vine_advantages if values_behind else leave_one_out_fork_advantages
    values, metrics = advantages(decisions, forks, normalise, parts)
    unfit = _WITH_STEP_REWARDS if has_step_rewards(decisions) else None
    if len(decisions) and not len(forks.parent):
        unfit = _WITHOUT_FORKS
    return spread(groups, decisions, values, metrics, unfit=unfit, parts=parts)


def vine_advantages(
    decisions: Decisions, forks: Forks, normalise: Form = "mean", parts: Parts | None = None
) -> tuple[Floats, dict[str, float]]:
    """[n] `vine` on columns, and its metrics; `parts` gets what they were made of."""
    return _advantages(decisions, forks, normalise, parts, values_behind=True)


def leave_one_out_fork_advantages(
    decisions: Decisions, forks: Forks, normalise: Form = "mean", parts: Parts | None = None
) -> tuple[Floats, dict[str, float]]:
    """[n] `leave_one_out_fork` on columns, and its metrics; `parts` gets what they were made of."""
    return _advantages(decisions, forks, normalise, parts, values_behind=False)


def _advantages(
    decisions: Decisions,
    forks: Forks,
    normalise: Form,
    parts: Parts | None,
    *,
    values_behind: bool,
) -> tuple[Floats, dict[str, float]]:
    broadcast = Parts()
    credit = broadcast_advantages(decisions, normalise, broadcast)
    reward = decisions.final[decisions.member]
    own_branch = forks.branch[decisions.member]
    branched = own_branch >= 0
    value = _values(decisions, forks)
    before = np.where(forks.before >= 0, _at(value, forks.before), broadcast["baseline"])
    before = np.where(branched, _siblings(decisions, forks)[decisions.member], before)
    behind = reward
    if values_behind:
        behind = np.where(forks.after >= 0, _at(value, forks.after), reward)
    by_forks = branched | (forks.before >= 0) | (values_behind & (forks.after >= 0))
    scale = np.ones(len(decisions))
    if normalise == "std":
        scale = _scale(decisions, forks)[decisions.member]
    credit = np.where(by_forks, (behind - before) / scale, credit)
    credit[forks.replayed] = 0.0
    if parts is not None:
        parts.update({"before": before, "after": behind})
        if normalise == "std":
            parts["deviation"] = scale
    acted = ~forks.replayed
    return credit, {
        "fork_points": float(len(forks.parent)),
        "broadcast_share": float(1.0 - by_forks[acted].mean()) if acted.any() else 1.0,
    }


def _values(decisions: Decisions, forks: Forks) -> Floats:
    """[F] mean final reward of each fork point's branches; exactly their reward where all are equal."""
    rows = np.flatnonzero(forks.branch >= 0)
    found = np.zeros(len(forks.parent))
    found[forks.branch[rows]] = means(forks.branch[rows], decisions.final[rows])
    return found


def _siblings(decisions: Decisions, forks: Forks) -> Floats:
    """[M] mean final reward of a branch's siblings; its own where it has none, 0 for a member that is no branch."""
    rows = np.flatnonzero(forks.branch >= 0)
    label, final = forks.branch[rows], decisions.final[rows]
    size, mean = counts(label), means(label, final)
    others = np.where(mean == final, final, (mean * size - final) / (size - 1).clip(1))
    found = np.zeros(len(decisions.final))
    found[rows] = np.where(size > 1, others, final)
    return found


def _scale(decisions: Decisions, forks: Forks) -> Floats:
    """[M] deviation of the rewards of the group that a rollout belongs to, its parent's for a branch; 1 for 0."""
    deviation = deviations(decisions.member_group, decisions.final)
    home = np.arange(len(deviation))
    rows = np.flatnonzero(forks.branch >= 0)
    home[rows] = forks.parent[forks.branch[rows]]
    found = np.where(home >= 0, deviation[home], 0.0)
    return np.where(found > 0.0, found + EPSILON, 1.0)


def _at(values: Floats, places: Labels) -> Floats:
    """[n] `values` at `places`, 0 where a place is -1."""
    padded = np.append(values, 0.0)
    return padded[places]


# -- from groups to columns -------------------------------------------------------------------------


def read_forks(groups: Sequence[Group], decisions: Decisions) -> Forks:
    """Where the decisions of `groups` stand among their fork points.

    A member's decision lies before a fork point if the point's branches were given its answer again, and behind it if
    not, in whatever order parallel agents began.

    Args:
        groups: what an assigner was given.
        decisions: theirs, by `read_decisions`.
    """
    traces = [trace for group in groups for trace in group.traces if np.isfinite(trace.reward)]
    every = [one for group in groups for trace in group.traces for one in trace.transitions]
    calls = [every[slot].call for slot in decisions.slot.tolist()]
    points: dict[tuple[AttemptId, StepId | None], int] = {}
    branch = np.full(len(traces), -1, np.int64)
    for m, trace in enumerate(traces):
        fork = trace.rollout.spec.fork
        if fork is not None:
            branch[m] = points.setdefault((fork.attempt, fork.step), len(points))
    members = {trace.attempt.id: m for m, trace in enumerate(traces)}
    parent = np.array([members.get(attempt, -1) for attempt, _ in points], np.int64)
    own = branch[decisions.member]
    trunks: list[set[ReplayOf]] = [set() for _ in points]
    for point, call in zip(own.tolist(), calls, strict=True):
        if point >= 0 and call is not None and call.replay_of is not None:
            trunks[point].add(call.replay_of)
    before, after = _neighbours(decisions.member, calls, parent, trunks)
    return Forks(
        branch=branch,
        before=np.where(own >= 0, own, before),
        after=np.where(own >= 0, -1, after),
        replayed=(own >= 0) & np.array([_is_replayed(one) for one in calls], np.bool_),
        parent=parent,
    )


def _neighbours(
    member: Labels,
    calls: Sequence[CallEvent | None],
    parent: Labels,
    trunks: Sequence[set[ReplayOf]],
) -> tuple[Labels, Labels]:
    """[n] the last fork point at or before each decision of a forked member, and the first one behind it."""
    before, after = np.full(len(calls), -1, np.int64), np.full(len(calls), -1, np.int64)
    for m in np.unique(parent[parent >= 0]).tolist():
        rows = np.flatnonzero(member == m).tolist()
        points = np.flatnonzero(parent == m).tolist()
        origins = {row: None if (one := calls[row]) is None else origin_of(one) for row in rows}
        # A state comes after another one of the same rollout if more of it had been answered.
        points.sort(key=lambda point: sum(one in trunks[point] for one in origins.values()))
        for row, origin in origins.items():
            passed = [point for point in points if origin not in trunks[point]]
            ahead = [point for point in points if origin in trunks[point]]
            before[row] = passed[-1] if passed else -1
            after[row] = ahead[0] if ahead else -1
    return before, after


def _is_replayed(call: CallEvent | None) -> bool:
    return call is not None and any(
        (choice.untrainable or "").startswith(REPLAYED) for choice in call.choices
    )
