"""One seed's episodes as `Decisions`: the thin adapter between the laboratory and the shipped methods.

`read_decisions` makes the same columns of recorded messages. A test lays one batch out both ways and compares.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from credit_laboratory.tasks import Environment, Flags, Floats, Ints
from lightningrl.credit.decisions import Decisions
from lightningrl.credit.state_keys import with_histories


@dataclass(frozen=True, eq=False)
class Episodes:
    """B rollouts of up to T turns."""

    group: Ints
    """[B] which group, from 0, in order."""
    lived: Flags
    """[B, T] whether the turn took place."""
    observed: Ints
    """[B, T]."""
    actions: Ints
    """[B, T]."""
    rewards: Floats
    """[B, T], 0 where the turn didn't take place."""
    roles: Ints
    """[T]."""


def decisions_of(
    episodes: Episodes, environment: type[Environment], *, step_rewards: bool, levels: int = 1
) -> Decisions:
    """The columns of `episodes`.

    Args:
        episodes: of one seed.
        environment: the task.
        step_rewards: whether rewards stand on their steps; else a member's sum is its final reward.
        levels: history levels of states.
    """
    member, turn = np.nonzero(episodes.lived)
    rows = np.arange(len(member))
    group, role = episodes.group[member], episodes.roles[turn]
    if environment.unique_states:
        states = rows
    else:
        key = (group * environment.observations + episodes.observed[member, turn]) * 2 + role
        states = np.unique(key, return_inverse=True)[1].reshape(-1)
    earned = episodes.rewards[member, turn]
    decisions = Decisions(
        slot=rows,
        group=group,
        member=member,
        turn=turn,
        parent=np.where(turn > 0, rows - 1, -1),
        reward=earned if step_rewards else np.zeros(len(rows)),
        rewarded=np.full(len(rows), step_rewards),
        agent=role,
        tokens=np.ones(len(rows), np.int64),
        final=episodes.rewards.sum(1),
        member_group=episodes.group,
        agents=(("planner", ()), ("solver", ())),
        states=(states,),
        action=episodes.actions[member, turn],
    )
    return with_histories(decisions, levels) if levels > 1 else decisions
