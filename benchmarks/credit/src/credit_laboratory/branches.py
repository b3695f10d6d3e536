"""Forks of the laboratory's rollouts: which turns they begin at, and where their decisions stand among them.

Invariant: a branch has its parent's actions and the parent's chance up to its turn, so it stands where the parent stood;
what it repeats is no sampled token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import numpy as np

from credit_laboratory.batch import Episodes
from credit_laboratory.tasks import Flags, Ints
from lightningrl.credit.fork_points import ForkRule
from lightningrl.credit.forks import Forks
from lightningrl.experience.transition import Group


@dataclass(frozen=True)
class Plan:
    """How a method spends an update: fewer rollouts, and branches for the rest."""

    rule: ForkRule
    """A shipped one."""
    group: int
    """Rollouts of each context."""
    per_group: int
    members: int


@dataclass(frozen=True, eq=False)
class Branches:
    """X branches of B rollouts, in order of their F fork points."""

    parent: Ints
    """[X] which rollout."""
    turn: Ints
    """[X] the turn that is sampled anew."""
    point: Ints
    """[X] which fork point."""


def choose(plan: Plan, episodes: Episodes, generators: Sequence[Random]) -> Branches:
    """The branches of each group, by its seed's generator: never of a first turn.

    Args:
        plan: what is chosen.
        episodes: the members of whole groups, in order.
        generators: of each group.
    """
    length = episodes.lived.sum(1)
    points: list[tuple[int, int]] = []
    for number, random in enumerate(generators):
        first = number * plan.group
        members = range(first, first + plan.group)
        steps: Any = [range(int(length[m]) - 1) for m in members]
        group: Any = Group
        points += [
            (first + m, place + 1) for m, place in plan.rule(group, steps, plan.per_group, random)
        ]
    found = np.array(points, np.int64).reshape(-1, 2)
    point = np.repeat(np.arange(len(found)), plan.members)
    return Branches(found[point, 0], found[point, 1], point)


def joined(members: Episodes, branches: Episodes) -> Episodes:
    """Members and branches as one batch; each fork point's branches are a group of their own behind the members'."""
    behind = branches.group + int(members.group.max()) + 1
    return Episodes(
        group=np.concatenate([members.group, behind]),
        lived=np.concatenate([members.lived, branches.lived]),
        observed=np.concatenate([members.observed, branches.observed]),
        actions=np.concatenate([members.actions, branches.actions]),
        rewards=np.concatenate([members.rewards, branches.rewards]),
        roles=members.roles,
    )


def replayed_turns(branches: Branches, shape: tuple[int, int]) -> Flags:
    """[B + X, T] whether a turn repeats a parent's, of members and then branches."""
    count, turns = shape
    first = np.zeros(count, np.int64)
    first[count - len(branches.turn) :] = branches.turn
    return np.arange(turns) < first[:, None]


def forks_of(branches: Branches, lived: Flags) -> Forks:
    """Where the decisions of `joined` episodes stand.

    Args:
        branches: of them.
        lived: [B + X, T] of the joined ones.
    """
    count = len(lived) - len(branches.parent)
    member, turn = np.nonzero(lived)
    branch = np.concatenate([np.full(count, -1), branches.point])
    parent, at = (_first(one, branches.point) for one in (branches.parent, branches.turn))
    before, after = np.full(len(member), -1), np.full(len(member), -1)
    start = np.concatenate([[0], np.cumsum(lived.sum(1))])
    for point in np.argsort(at, kind="stable"):
        rows = slice(start[parent[point]], start[parent[point] + 1])
        passed = turn[rows] >= at[point]
        before[rows] = np.where(passed, point, before[rows])
        after[rows] = np.where(~passed & (after[rows] < 0), point, after[rows])
    own = branch[member]
    return Forks(
        branch=branch,
        before=np.where(own >= 0, own, before),
        after=np.where(own >= 0, -1, after),
        replayed=replayed_turns(branches, lived.shape)[lived],
        parent=parent,
    )


def _first(values: Ints, point: Ints) -> Ints:
    """[F] the value of each fork point's first branch."""
    return values[np.unique(point, return_index=True)[1]]
