"""Members of a group as cells: each its reward in a colour.

A page of an iteration has thousands, so they are made here; a template takes several times as long.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from lightningrl.schema import RolloutState
from lightningrl_ui.address import of_rollout
from lightningrl_ui.tables import number
from lightningrl_ui.views.iteration import Member

_WITHOUT_REWARD = {
    RolloutState.FAILED: "\N{MULTIPLICATION SIGN}",
    RolloutState.RUNNING: "…",
    RolloutState.QUEUED: "·",
}


class Cell(NamedTuple):
    """What stands in a cell; texts are as others wrote them."""

    shade: str
    """CSS class."""
    address: str
    told: str
    """For whoever points at it."""
    text: str


def cells_of(run: str, members: Sequence[Member], low: float, high: float) -> list[Cell]:
    """The cells of members of a run, where rewards go from `low` to `high`."""
    return [_cell(run, one, low, high) for one in members]


def _cell(run: str, member: Member, low: float, high: float) -> Cell:
    rollout, reward = member.rollout, member.reward
    state = rollout.state
    told = f"member {rollout.spec.member}: {state.value}"
    if reward is not None:
        told += f", reward {number(reward)}"
    if member.failure:
        told += f", {member.failure[:300]}"
    failed = state is RolloutState.FAILED
    return Cell(
        "failed" if failed else _shade(reward, low, high),
        of_rollout(run, rollout.id),
        told,
        _WITHOUT_REWARD.get(state, "-") if reward is None else f"{reward:.2g}",
    )


def _shade(value: float | None, low: float, high: float) -> str:
    """The CSS class of a reward's colour: `r0` to `r10`."""
    if value is None:
        return "none"
    return f"r{round(10 * min(1.0, max(0.0, (value - low) / (high - low))))}"
