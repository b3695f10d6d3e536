"""RTMC: what an action was worth in a state, over the group's rollouts that took it.

Over first visits of each (state, action) per member: Q(s, a) is the mean return to go, V(s) the mean of Q
weighted by visits, V'(s) = (N V + n0 p) / (N + n0) with N the visits of s, p the group's mean final reward and
n0 = `prior` pseudo-visits; credit = Q - V', divided (not centred) by the population deviation of the group's
credits with `normalise`. Formulas and constants (gamma 0.99, n0 2) of arXiv 2604.11037 as restated in GRAFT's
appendix and a third-party port. A failed rollout's decision can get more than 0: its action won elsewhere.

Final rewards only: p knows no time, so with step rewards late decisions would all look bad; step rewards are left
out, and reported as `Credit.unfit`. p is not discounted while Q is, which pulls early decisions down; gamma 1 avoids it.

Degenerate cases: a state met once gives n0 / (1 + n0) times (G - p). Groups of one, and groups whose final
rewards are all equal, give 0 (by the formula they would get the drift just mentioned). Below `gate` (see `coverage.py`) the credit is exactly the broadcast in the form `fallback`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from lightningrl.credit.broadcast import Form, broadcast_advantages
from lightningrl.credit.columns import read_decisions
from lightningrl.credit.compare import all_equal, means, paired
from lightningrl.credit.coverage import DEFAULT_GATE, below, compared_states, coverage
from lightningrl.credit.decisions import Decisions, Floats, Parts, spread
from lightningrl.credit.result import Credit
from lightningrl.credit.rewards import has_step_rewards, returns_to_go
from lightningrl.credit.state_keys import KeyRules
from lightningrl.experience.transition import Group
from lightningrl.user_input.arguments import AtLeastZero, Share

_FLAT = 1e-8
"""A group whose credits deviate less than this is not divided by their deviation."""


def rtmc(
    groups: Sequence[Group],
    *,
    gamma: Share = 0.99,
    prior: AtLeastZero = 2.0,
    normalise: bool = True,
    fallback: Form = "std",
    gate: Share = DEFAULT_GATE,
    rules: Sequence[str] | None = None,
) -> Credit:
    """Action values minus smoothed state values, from the group's own rollouts.

    Args:
        groups: any number, of any sizes.
        gamma: discount per decision.
        prior: pseudo-visits n0 of the group's mean reward.
        normalise: whether to divide by the deviation of the group's credits.
        fallback: form of the broadcast below the gate; see `broadcast`.
        gate: least coverage; see `coverage.py`.
        rules: what state keys ignore, by name; `None` is all of `observation.RULES`.
    """
    decisions, parts = read_decisions(groups, keys=KeyRules(rules=rules)), Parts()
    values, metrics = rtmc_advantages(
        decisions,
        gamma=gamma,
        prior=prior,
        normalise=normalise,
        fallback=fallback,
        gate=gate,
        parts=parts,
    )
    return spread(
        groups,
        decisions,
        values,
        metrics,
        unfit=_with_step_rewards(decisions),
        parts=parts,
        states=compared_states(decisions, metrics),
    )


def rtmc_advantages(
    decisions: Decisions,
    *,
    gamma: float = 0.99,
    prior: float = 2.0,
    normalise: bool = True,
    fallback: Form = "std",
    gate: float = DEFAULT_GATE,
    parts: Parts | None = None,
) -> tuple[Floats, dict[str, float]]:
    """[n] `rtmc` on columns, and its metrics; `parts` gets what they were made of."""
    metrics = coverage(decisions)
    if below(decisions, metrics, gate):
        return broadcast_advantages(decisions, fallback, parts), metrics
    of_action, of_state = _values(decisions, gamma, prior)
    credit = of_action - of_state
    if parts is not None:
        parts.update({"action_mean": of_action, "state_mean": of_state})
    credit[all_equal(decisions.member_group, decisions.final)[decisions.member]] = 0.0
    if normalise:
        mean = means(decisions.group, credit)
        deviation = np.sqrt(means(decisions.group, (credit - mean) ** 2))
        credit = credit / np.where(deviation > _FLAT, deviation, 1.0)
    metrics["decisions_with_step_credit"] = float((credit != 0.0).mean())
    return credit, metrics


def _with_step_rewards(decisions: Decisions) -> str | None:
    """Why decisions with step rewards don't suit the method."""
    if not has_step_rewards(decisions):
        return None
    return (
        "steps have rewards, and rtmc compares final rewards alone. Use 'credit: group_td' or"
        " 'credit: step_reward'"
    )


def _values(decisions: Decisions, gamma: float, prior: float) -> tuple[Floats, Floats]:
    """Q and V' of each decision."""
    assert decisions.action is not None
    states = decisions.states[0]
    choice = paired(states, decisions.action)
    first = np.unique(paired(choice, decisions.member), return_index=True)[1]
    alone = replace(decisions, reward=np.zeros(len(decisions)))
    returns = returns_to_go(alone, gamma, final_in_steps=False)
    visits = np.bincount(choice[first])
    q = np.bincount(choice[first], returns[first]) / visits
    seen = np.bincount(states[first], minlength=int(states.max()) + 1)
    v = np.bincount(states[first], returns[first], minlength=len(seen)) / np.maximum(seen, 1)
    p = means(decisions.member_group, decisions.final)[decisions.member]
    smoothed = (seen[states] * v[states] + prior * p) / (seen[states] + prior)
    return q[choice], smoothed
