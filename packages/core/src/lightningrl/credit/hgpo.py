"""HGPO: advantages among decisions with the same recent history, a weighted mean over history lengths.

Level k compares the group's decisions whose state and k states before it (of the same agent) are equal:
A^k = (G - mean G) / (std G + 1e-6) with the population's deviation (`std`) or without (`mean`). Credit is the
mean of the levels with weights w_k proportional to (k + offset)^alpha (arXiv 2602.22817, eq. 3-7; the paper has
offset 1, its code 2). A level in which a decision is alone, or gets exactly 0, drops out of that decision's
mean, as does a level longer than its history. `base` adds the broadcast as one more level of weight 1, so that
a decision whose states nobody shares still learns something (an option in the published code; here the default).

Degenerate cases: groups of one and equal rewards give 0 (with gamma 1, or final rewards all 0). Without `base`
unmatched decisions get 0. Below `gate` (see `coverage.py`) the credit is exactly the broadcast in the form
`normalise`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from lightningrl.credit.broadcast import broadcast_advantages
from lightningrl.credit.columns import read_decisions
from lightningrl.credit.compare import centred, standardised
from lightningrl.credit.coverage import DEFAULT_GATE, below, compared_states, coverage
from lightningrl.credit.decisions import Decisions, Floats, Labels, Parts, spread
from lightningrl.credit.result import Credit
from lightningrl.credit.rewards import returns_to_go
from lightningrl.credit.state_keys import KeyRules
from lightningrl.experience.transition import Group
from lightningrl.user_input.arguments import Count, Positive, Share

_ZERO = 1e-12
"""Advantages nearer to 0 than this count as 0."""


def hgpo(
    groups: Sequence[Group],
    *,
    history: Count = 2,
    alpha: float = 1.0,
    offset: Positive = 1,
    gamma: Share = 0.95,
    normalise: Literal["mean", "std"] = "std",
    base: bool = True,
    gate: Share = DEFAULT_GATE,
    final_in_steps: bool | None = None,
    rules: Sequence[str] | None = None,
) -> Credit:
    """Advantages within groups of equal histories, longer ones weighing more.

    Args:
        groups: any number, of any sizes.
        history: longest history K, in decisions before the present one.
        alpha: how much more longer histories weigh.
        offset: 1 as in the paper, 2 as in its code.
        gamma: discount per decision.
        normalise: of the levels and the broadcast; see the module.
        base: whether the broadcast is a level.
        gate: least coverage; see `coverage.py`.
        final_in_steps: see `rewards.rewards`.
        rules: what state keys ignore, by name; `None` is all of `observation.RULES`.
    """
    decisions = read_decisions(groups, keys=KeyRules(levels=history + 1, rules=rules))
    parts = Parts()
    values, metrics = hgpo_advantages(
        decisions,
        alpha=alpha,
        offset=offset,
        gamma=gamma,
        normalise=normalise,
        base=base,
        gate=gate,
        final_in_steps=final_in_steps,
        parts=parts,
    )
    states = compared_states(decisions, metrics)
    return spread(groups, decisions, values, metrics, parts=parts, states=states)


def hgpo_advantages(
    decisions: Decisions,
    *,
    alpha: float = 1.0,
    offset: int = 1,
    gamma: float = 0.95,
    normalise: Literal["mean", "std"] = "std",
    base: bool = True,
    gate: float = DEFAULT_GATE,
    final_in_steps: bool | None = None,
    parts: Parts | None = None,
) -> tuple[Floats, dict[str, float]]:
    """[n] `hgpo` on columns, as many levels as `decisions.states` has, and its metrics.

    `parts` gets what they were made of.
    """
    metrics = coverage(decisions)
    episode = broadcast_advantages(decisions, normalise, parts)
    if below(decisions, metrics, gate):
        return episode, metrics
    returns = returns_to_go(decisions, gamma, final_in_steps)
    levels = [
        ((k + offset) ** alpha, _level(states, returns, normalise))
        for k, states in enumerate(decisions.states)
    ]
    matched = np.any([np.abs(level) > _ZERO for _, level in levels], axis=0)
    metrics["decisions_with_step_credit"] = float(matched.mean())
    if parts is not None:
        parts.update({"rollout": episode, "return": returns})
        parts.update({f"level_{k}": level for k, (_, level) in enumerate(levels)})
    if base:
        levels.append((1.0, episode))
    total = sum(weight * level for weight, level in levels)
    weights = sum(weight * (np.abs(level) > _ZERO) for weight, level in levels)
    return total / np.where(weights > 0, weights, 1.0), metrics


def _level(states: Labels, returns: Floats, normalise: str) -> Floats:
    level = np.zeros(len(states))
    known = states >= 0
    if normalise == "std":
        level[known] = standardised(states[known], returns[known], ddof=0)
    else:
        level[known] = centred(states[known], returns[known])
    return level
