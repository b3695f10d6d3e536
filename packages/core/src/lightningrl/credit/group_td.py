"""Group TD: temporal differences on values that the group itself gives, broadcast where it gives none.

V(s) is the mean return to go of the group's decisions in state s; delta_t = r_t + gamma V(s_(t+1)) - V(s_t),
V = 0 after the end; A_t = delta_t + gamma lambda A_(t+1); then A is standardised over all decisions of the
group (population deviation). That is our reconstruction of GAGPO (arXiv 2605.13217, known to us from notes:
its code and exact constants are not public). A state that was met once has V = G, hence delta = 0: its
decisions would learn nothing, so they get the broadcast instead. That repair is ours.

Degenerate cases: groups of one and equal returns give 0. Below `gate` (see `coverage.py`) all decisions get the
broadcast. States that hide what matters move credit to the end of the rollout: equal states have equal values, so
the TD error falls on the last decision and reaches k decisions back times (gamma lambda)^k. With both 1 that is the
broadcast.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lightningrl.credit.broadcast import Form, broadcast_advantages
from lightningrl.credit.columns import read_decisions
from lightningrl.credit.compare import backward, counts, following_mean, means, standardised
from lightningrl.credit.coverage import DEFAULT_GATE, below, compared_states, coverage
from lightningrl.credit.decisions import Decisions, Floats, Parts, spread
from lightningrl.credit.result import Credit
from lightningrl.credit.rewards import returns_to_go, rewards
from lightningrl.credit.state_keys import KeyRules
from lightningrl.experience.transition import Group
from lightningrl.user_input.arguments import Share


def group_td(
    groups: Sequence[Group],
    *,
    gamma: Share = 0.95,
    lam: Share = 0.95,
    normalise: Form = "std",
    gate: Share = DEFAULT_GATE,
    final_in_steps: bool | None = None,
    rules: Sequence[str] | None = None,
) -> Credit:
    """TD(lambda) advantages where states repeat, broadcast where they don't.

    Args:
        groups: any number, of any sizes.
        gamma: discount per decision.
        lam: lambda; 0 is one-step TD, 1 the return minus the value.
        normalise: of the broadcast; see `broadcast`.
        gate: least coverage; see `coverage.py`.
        final_in_steps: see `rewards.rewards`.
        rules: what state keys ignore, by name; `None` is all of `observation.RULES`.
    """
    decisions, parts = read_decisions(groups, keys=KeyRules(rules=rules)), Parts()
    values, metrics = group_td_advantages(
        decisions,
        gamma=gamma,
        lam=lam,
        normalise=normalise,
        gate=gate,
        final_in_steps=final_in_steps,
        parts=parts,
    )
    states = compared_states(decisions, metrics)
    return spread(groups, decisions, values, metrics, parts=parts, states=states)


def group_td_advantages(
    decisions: Decisions,
    *,
    gamma: float = 0.95,
    lam: float = 0.95,
    normalise: Form = "std",
    gate: float = DEFAULT_GATE,
    final_in_steps: bool | None = None,
    parts: Parts | None = None,
) -> tuple[Floats, dict[str, float]]:
    """[n] `group_td` on columns, and its metrics; `parts` gets what they were made of."""
    metrics = coverage(decisions)
    episode = broadcast_advantages(decisions, normalise, parts)
    if below(decisions, metrics, gate):
        return episode, metrics
    raw = td_advantages(decisions, gamma=gamma, lam=lam, final_in_steps=final_in_steps)
    matched = counts(decisions.states[0]) >= 2
    if parts is not None:
        returns = returns_to_go(decisions, gamma, final_in_steps)
        parts.update({"rollout": episode, "return": returns, "td": raw})
        parts["state_mean"] = means(decisions.states[0], returns)
    metrics["decisions_with_step_credit"] = float(matched.mean())
    return np.where(matched, standardised(decisions.group, raw, ddof=0), episode), metrics


def td_advantages(
    decisions: Decisions, *, gamma: float, lam: float, final_in_steps: bool | None
) -> Floats:
    """[n] the advantages before they are standardised."""
    values = means(decisions.states[0], returns_to_go(decisions, gamma, final_in_steps))
    deltas = rewards(decisions, final_in_steps) - values + gamma * following_mean(decisions, values)
    return backward(decisions, deltas, gamma * lam)
