"""The reward of each decision, with the final reward where it belongs, and returns to go."""

from __future__ import annotations

import numpy as np

from lightningrl.credit.compare import backward, children_of
from lightningrl.credit.decisions import Decisions, Floats

_TOLERANCE = 1e-9
"""How far a final reward may be from the sum of its step rewards and still count as that sum."""


def has_step_rewards(decisions: Decisions) -> bool:
    """Whether any decision has a step reward."""
    return bool(decisions.rewarded.any())


def final_is_in_steps(decisions: Decisions) -> bool:
    """Whether every member's final reward is the sum of its step rewards, of which there are some."""
    sums = np.bincount(decisions.member, decisions.reward, minlength=len(decisions.final))
    close = np.abs(sums - decisions.final) <= _TOLERANCE * np.maximum(1.0, np.abs(decisions.final))
    return has_step_rewards(decisions) and bool(close.all())


def rewards(decisions: Decisions, final_in_steps: bool | None) -> Floats:
    """[n] step rewards, 0 where there is none, and the final reward on a member's last decision.

    Where a member's conversations branch, the last decision of each branch has the final reward.

    Args:
        decisions: n of them.
        final_in_steps: the final rewards are sums of the step rewards, and must not count twice.
            `None`: so it is where `final_is_in_steps` says so.
    """
    if final_is_in_steps(decisions) if final_in_steps is None else final_in_steps:
        return decisions.reward
    last = children_of(decisions) == 0
    return decisions.reward + np.where(last, decisions.final[decisions.member], 0.0)


def returns_to_go(decisions: Decisions, gamma: float, final_in_steps: bool | None) -> Floats:
    """[n] discounted sum of the rewards from each decision on; the mean over its branches."""
    return backward(decisions, rewards(decisions, final_in_steps), gamma)
