"""GiGPO: the rollout's advantage plus the decision's own among decisions in the same state.

Credit = A_i + weight * S_it (arXiv 2505.10978): A_i is the broadcast in the form `normalise`, and
S_it = (G_it - mean G) / F over the group's decisions in the same state, G the discounted returns to go; F is 1
for `mean` (the published code's default) and the sample deviation plus 1e-6 for `std`. Every visit of a state
counts, also several by one member; `min_members=2` gives 0 where only one member was there.

Degenerate cases: a state met once gives S = 0, so without repeated states this is the broadcast; one state for
everything gives about (1 + weight) times the broadcast (`inert_groups` in the metrics says so). Below `gate`
(see `coverage.py`) the credit is exactly the broadcast's. Groups of one and equal rewards: A = 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from lightningrl.credit.broadcast import broadcast_advantages
from lightningrl.credit.columns import read_decisions
from lightningrl.credit.compare import centred, means, members_per_state, standardised
from lightningrl.credit.coverage import DEFAULT_GATE, below, compared_states, coverage
from lightningrl.credit.decisions import Decisions, Floats, Parts, spread
from lightningrl.credit.result import Credit
from lightningrl.credit.rewards import returns_to_go
from lightningrl.credit.state_keys import KeyRules
from lightningrl.experience.transition import Group
from lightningrl.user_input.arguments import AtLeastZero, Count, Share


def gigpo(
    groups: Sequence[Group],
    *,
    weight: AtLeastZero = 1.0,
    gamma: Share = 0.95,
    normalise: Literal["mean", "std"] = "mean",
    min_members: Count = 1,
    gate: Share = DEFAULT_GATE,
    final_in_steps: bool | None = None,
    rules: Sequence[str] | None = None,
) -> Credit:
    """Broadcast plus the advantage within groups of equal states.

    Args:
        groups: any number, of any sizes.
        weight: of the state's part.
        gamma: discount per decision (0.95 in the paper).
        normalise: of both parts; see the module.
        min_members: least members in a state for its part to count.
        gate: least coverage; see `coverage.py`.
        final_in_steps: see `rewards.rewards`.
        rules: what state keys ignore, by name; `None` is all of `observation.RULES`.
    """
    decisions, parts = read_decisions(groups, keys=KeyRules(rules=rules)), Parts()
    values, metrics = gigpo_advantages(
        decisions,
        weight=weight,
        gamma=gamma,
        normalise=normalise,
        min_members=min_members,
        gate=gate,
        final_in_steps=final_in_steps,
        parts=parts,
    )
    states = compared_states(decisions, metrics)
    return spread(groups, decisions, values, metrics, parts=parts, states=states)


def gigpo_advantages(
    decisions: Decisions,
    *,
    weight: float = 1.0,
    gamma: float = 0.95,
    normalise: Literal["mean", "std"] = "mean",
    min_members: int = 1,
    gate: float = DEFAULT_GATE,
    final_in_steps: bool | None = None,
    parts: Parts | None = None,
) -> tuple[Floats, dict[str, float]]:
    """[n] `gigpo` on columns, and its metrics; `parts` gets what they were made of."""
    metrics = coverage(decisions)
    episode = broadcast_advantages(decisions, normalise, parts)
    if below(decisions, metrics, gate):
        return episode, metrics
    compare = standardised if normalise == "std" else centred
    returns = returns_to_go(decisions, gamma, final_in_steps)
    own = compare(decisions.states[0], returns)
    own = np.where(members_per_state(decisions) >= min_members, own, 0.0)
    if parts is not None:
        parts.update({"rollout": episode, "state": weight * own, "return": returns})
        parts["state_mean"] = means(decisions.states[0], returns)
    metrics["decisions_with_step_credit"] = float((own != 0.0).mean())
    return episode + weight * own, metrics
