"""Broadcast: every transition of a rollout gets the rollout's own advantage."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Literal

from lightningrl.transition import Group

_EPSILON = 1e-6
"""Added to the standard deviation, as in verl 0.9.1, `trainer/ppo/core_algos.py`."""


def broadcast(
    groups: Sequence[Group], *, normalise: Literal["std", "mean"] = "std"
) -> list[list[list[float]]]:
    """GRPO's group-relative advantage, equal for all transitions of a rollout.

    With the rewards R_i of a group: `std` gives (R_i - mean R) / (std R + 1e-6) with the sample
    standard deviation (GRPO, arXiv 2402.03300, eq. 4); `mean` gives R_i - mean R (Dr. GRPO,
    arXiv 2503.20783). Mean and deviation are over rollouts, never over transitions.

    A group of one, and a group whose rewards are all equal, get exactly 0 (verl's estimator gives a
    group of one its raw reward). An empty group gives an empty list.

    Raises:
        ValueError: `normalise` is neither `std` nor `mean`.
    """
    if normalise not in ("std", "mean"):
        raise ValueError(f"broadcast: normalise is 'std' or 'mean', not {normalise!r}")
    credit: list[list[list[float]]] = []
    for group in groups:
        advantages_G = _advantages([trace.reward for trace in group.traces], normalise)
        credit.append(
            [
                [advantage] * len(trace.transitions)
                for trace, advantage in zip(group.traces, advantages_G, strict=True)
            ]
        )
    return credit


def _advantages(rewards_G: list[float], normalise: str) -> list[float]:
    if len(rewards_G) < 2 or min(rewards_G) == max(rewards_G):
        return [0.0] * len(rewards_G)
    mean = statistics.fmean(rewards_G)
    scale = statistics.stdev(rewards_G) + _EPSILON if normalise == "std" else 1.0
    return [(reward - mean) / scale for reward in rewards_G]
