"""G2PO: how much an edge of the graph of equal observations raised the value, standardised over the graph.

The rollouts of a group are one graph (arXiv 2606.22995): a node is a state, a decision is an edge from its state s to
the state s' of the decision after it. V(s) is the mean return to go over all visits of s by any member, V = 0 after the
end, and A = r + gamma V(s') - V(s); then A is standardised over all edges of the graph, each decision once (population
deviation plus 1e-6). With gamma 1, the default, V(s) is the mean of what was still earned by those who came through s.

So only a decision that changes what can be expected gets credit: a failed rollout's good decisions too, and nothing
that lies between. That is `group_td` with lambda 0, but for states that were met once: here they stay in the graph, so
that one from which an edge leads to a known state is judged by that state. Known to us from the abstract and reviews:
weights and constants of its code are not in it, and an episode's part, as in GiGPO, is left out.

Degenerate cases: groups of one and equal returns give 0. Below `gate` (see `coverage.py`) the credit is exactly the
broadcast in the form `fallback`. Where equal states hide what matters, V doesn't move until the end: the last decision
alone gets credit.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lightningrl.credit.broadcast import Form, broadcast_advantages
from lightningrl.credit.columns import read_decisions
from lightningrl.credit.compare import following_mean, means, standardised
from lightningrl.credit.coverage import DEFAULT_GATE, below, compared_states, coverage
from lightningrl.credit.decisions import Decisions, Floats, Parts, spread
from lightningrl.credit.group_td import td_advantages
from lightningrl.credit.result import Credit
from lightningrl.credit.rewards import returns_to_go
from lightningrl.credit.state_keys import KeyRules
from lightningrl.experience.transition import Group
from lightningrl.user_input.arguments import Share

_FLAT = 1e-9
"""An edge whose ends' values differ by less than this is taken as level: that is a rounding error."""


def g2po(
    groups: Sequence[Group],
    *,
    gamma: Share = 1.0,
    fallback: Form = "std",
    gate: Share = DEFAULT_GATE,
    final_in_steps: bool | None = None,
    rules: Sequence[str] | None = None,
) -> Credit:
    """One-step differences of the values of equal observations.

    Args:
        groups: any number, of any sizes.
        gamma: discount per decision.
        fallback: form of the broadcast where states don't repeat.
        gate: least coverage; see `coverage.py`.
        final_in_steps: see `rewards.rewards`.
        rules: what state keys ignore, by name; `None` is all of `observation.RULES`.
    """
    decisions, parts = read_decisions(groups, keys=KeyRules(rules=rules)), Parts()
    values, metrics = g2po_advantages(
        decisions,
        gamma=gamma,
        fallback=fallback,
        gate=gate,
        final_in_steps=final_in_steps,
        parts=parts,
    )
    states = compared_states(decisions, metrics)
    return spread(groups, decisions, values, metrics, parts=parts, states=states)


def g2po_advantages(
    decisions: Decisions,
    *,
    gamma: float = 1.0,
    fallback: Form = "std",
    gate: float = DEFAULT_GATE,
    final_in_steps: bool | None = None,
    parts: Parts | None = None,
) -> tuple[Floats, dict[str, float]]:
    """[n] `g2po` on columns, and its metrics; `parts` gets what they were made of."""
    metrics = coverage(decisions)
    if below(decisions, metrics, gate):
        return broadcast_advantages(decisions, fallback, parts), metrics
    edges = td_advantages(decisions, gamma=gamma, lam=0.0, final_in_steps=final_in_steps)
    if parts is not None:
        returns = returns_to_go(decisions, gamma, final_in_steps)
        value = means(decisions.states[0], returns)
        parts.update({"return": returns, "td": edges, "state_mean": value})
        parts["next_state_mean"] = following_mean(decisions, value)
    metrics["decisions_with_step_credit"] = float((np.abs(edges) > _FLAT).mean())
    return standardised(decisions.group, edges, ddof=0), metrics
