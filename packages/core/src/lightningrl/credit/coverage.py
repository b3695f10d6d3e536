"""Whether states repeat: the diagnostics of state keys, and the gate that step-group methods pass.

Invariant: below the gate a step-group method gives exactly the configured broadcast, and says so.
"""

from __future__ import annotations

import numpy as np

from lightningrl.credit.compare import counts, members_per_state, paired
from lightningrl.credit.decisions import Decisions, Labels

DEFAULT_GATE = 0.2
"""Below this share of later decisions in a state that another member was in too, comparing states
teaches less than it costs."""

_INERT = 0.5
"""A state that holds more of a group's decisions than this compares almost whole rollouts."""


def coverage(decisions: Decisions) -> dict[str, float]:
    """Metrics of the state keys; see docs/metrics.md.

    `coverage` counts decisions after a member's first one: those all begin in the group's task.
    """
    if not len(decisions):
        return {"coverage": 0.0}
    states, members = decisions.states[0], members_per_state(decisions)
    shared = members >= 2
    later = decisions.turn > 0
    assert decisions.action is not None
    return {
        "coverage": _share(shared[later]),
        "members_per_state": float(members.mean()),
        "states_with_choice": _share(_distinct_actions(decisions)[shared] >= 2),
        "largest_state_share": float(_largest_share(decisions).max()),
        "inert_groups": _share(_largest_share(decisions) > _INERT),
        "rewritten_histories": decisions.rewritten,
        "states": float(len(np.unique(states))),
    }


def below(decisions: Decisions, metrics: dict[str, float], gate: float) -> bool:
    """Whether coverage is below the gate; notes the answer in `metrics` as `fallback`."""
    fallback = not len(decisions) or metrics["coverage"] < gate
    metrics["fallback"] = float(fallback)
    return fallback


def compared_states(decisions: Decisions, metrics: dict[str, float]) -> Labels | None:
    """[n] the states that a step-group method compared. `None`: it fell back, and compared none."""
    return None if metrics["fallback"] else decisions.states[0]


def _share(flags: np.ndarray) -> float:
    return float(flags.mean()) if len(flags) else 0.0


def _distinct_actions(decisions: Decisions) -> np.ndarray:
    states = decisions.states[0]
    assert decisions.action is not None
    first = np.unique(paired(states, decisions.action), return_index=True)[1]
    return np.bincount(states[first], minlength=int(states.max()) + 1)[states]


def _largest_share(decisions: Decisions) -> np.ndarray:
    """Per group with more decisions than members, the share of its most frequent state."""
    sizes = counts(decisions.group)
    shares = counts(decisions.states[0]) / sizes
    largest = np.zeros(int(decisions.group.max()) + 1)
    np.maximum.at(largest, decisions.group, shares)
    members = np.bincount(decisions.member_group, minlength=len(largest))
    several = np.bincount(decisions.group, minlength=len(largest)) > members
    return largest[several] if several.any() else np.zeros(1)
