"""The model calls of some groups as columns: what the shipped assigners compute on.

Invariants: a decision is a delivered model call of a member with a finite final reward; nothing else
enters a statistic, and everything else gets credit 0. Rows stand in the order of groups, members and
starts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightningrl.credit.result import Credit
from lightningrl.experience.transition import Group

Labels = NDArray[np.int64]
Floats = NDArray[np.float64]

Parts = dict[str, Floats]
"""Name -> [n] what the credit of each decision was made of; NaN where a decision has no such part."""


@dataclass(frozen=True, eq=False)
class Decisions:
    """n decisions of M scored members."""

    slot: Labels
    """[n] index among all transitions of all groups, end to end."""
    group: Labels
    """[n] which group."""
    member: Labels
    """[n] which scored member, numbered through all groups."""
    turn: Labels
    """[n] 0 for a member's first decision, in order of start."""
    parent: Labels
    """[n] row of the decision before it on its path; -1 where it begins one. Without branches that is
    the member's decision before in order of start, whichever agent took it."""
    reward: Floats
    """[n] own step reward; 0 where there is none."""
    rewarded: NDArray[np.bool_]
    """[n] whether it has a step reward."""
    agent: Labels
    """[n] who took it; equal agents within equal agents are equal numbers in all groups."""
    tokens: Labels
    """[n] sampled tokens that may be trained; 0 where none."""
    final: Floats
    """[M] final reward of each member."""
    member_group: Labels
    """[M] which group."""
    agents: tuple[tuple[str | None, tuple[str, ...]], ...]
    """Behind `agent`: the agent's own name, `None` where nobody said, and the agents around it, the outermost first."""
    states: tuple[Labels, ...] = ()
    """Per history level [n]: equal numbers are equal states of one group and agent; -1 where a decision
    has no history that long. Empty where states were not asked for."""
    action: Labels | None = None
    """[n] equal numbers are equal actions. `None` where states were not asked for."""
    rewritten: float = 0.0
    """Share of the decisions whose messages hold answers of a conversation that nobody had: an edited
    history. 0 where states were not asked for."""

    def __len__(self) -> int:
        return len(self.slot)


def spread(
    groups: Sequence[Group],
    decisions: Decisions,
    values: Floats,
    metrics: Mapping[str, float] | None = None,
    *,
    unfit: str | None = None,
    parts: Parts | None = None,
    states: Labels | None = None,
) -> Credit:
    """Values of decisions as credit of all transitions, 0 for those that are no decision.

    To the metrics it adds `groups_without_credit`, the share of groups whose decisions all got 0.

    Args:
        groups: what the assigner was given.
        decisions: n of them.
        values: [n].
        metrics: see `Credit`.
        unfit: see `Credit`.
        parts: what the values were made of.
        states: [n] equal numbers were compared as one state; -1 where there was none. `None`: states were not
            compared.
    """
    taught = len(np.unique(decisions.group[values != 0.0]))
    empty = 1.0 - taught / len(groups) if groups else 0.0
    return Credit(
        _aligned(groups, decisions, values, 0.0),
        {**(metrics or {}), "groups_without_credit": empty},
        unfit,
        parts={
            name: _aligned(groups, decisions, part, math.nan)
            for name, part in (parts or {}).items()
        },
        states=None if states is None else _aligned(groups, decisions, states, -1),
    )


def _aligned(
    groups: Sequence[Group], decisions: Decisions, values: Floats | Labels, absent: float
) -> list[list[list[Any]]]:
    """[n] values as nested lists over all transitions, `absent` for those that are no decision."""
    slots = sum(len(trace.transitions) for group in groups for trace in group.traces)
    flat = np.full(slots, absent, values.dtype)
    flat[decisions.slot] = values
    numbers: list[Any] = flat.tolist()
    nested: list[list[list[Any]]] = []
    start = 0
    for group in groups:
        nested.append([])
        for trace in group.traces:
            nested[-1].append(numbers[start : start + len(trace.transitions)])
            start += len(trace.transitions)
    return nested
