"""Step rewards: returns to go from the rewards of steps, minus what comparable decisions got.

G_t = r_t + gamma G_(t+1); credit = G_t - b. With gamma 0 each decision is judged by its own reward, right
where sub-steps don't depend on each other. The baseline b is the mean of G over

| baseline | the group's decisions | mind |
|---|---|---|
| `index` | with the same turn number | mixes states; the last survivor at a turn number gets 0 |
| `state` | in the same state, else (a state of one member) with the same turn number | needs states that repeat |
| `group` | all of them | late decisions look bad where rewards accumulate |

(The same returns are in the multi-turn recipes of SkyRL and AReaL.)

Degenerate cases: a group of one gives 0, and so do equal returns. A decision without a step reward counts as 0;
a batch without any is reported as `Credit.unfit`, since every credit comes from the final reward alone, which
`broadcast` does better. `final_in_steps`: see `rewards.rewards`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, get_args

import numpy as np

from lightningrl.credit.columns import read_decisions
from lightningrl.credit.compare import (
    centred,
    deviations,
    means,
    members_per_state,
    paired,
    standardised,
)
from lightningrl.credit.coverage import coverage
from lightningrl.credit.decisions import Decisions, Floats, Labels, Parts, spread
from lightningrl.credit.result import Credit
from lightningrl.credit.rewards import has_step_rewards, returns_to_go
from lightningrl.credit.state_keys import KeyRules
from lightningrl.errors import ConfigError
from lightningrl.experience.transition import Group
from lightningrl.user_input.arguments import Share

Baseline = Literal["state", "index", "group"]


def step_reward(
    groups: Sequence[Group],
    *,
    gamma: Share = 1.0,
    baseline: Baseline = "state",
    normalise: Literal["mean", "std"] = "mean",
    final_in_steps: bool | None = None,
    rules: Sequence[str] | None = None,
) -> Credit:
    """Returns to go of recorded step rewards, compared with like decisions.

    Args:
        groups: any number, of any sizes.
        gamma: discount per decision, from 0 to 1.
        baseline: which decisions are alike; see the module.
        normalise: `std` divides by the sample deviation of those.
        final_in_steps: see `rewards.rewards`.
        rules: what state keys ignore, by name; `None` is all of `observation.RULES`.

    Raises:
        ConfigError: a parameter has no such value.
    """
    keys = KeyRules(rules=rules) if baseline == "state" else None
    decisions, parts = read_decisions(groups, paths=True, keys=keys), Parts()
    values = step_reward_advantages(
        decisions,
        gamma=gamma,
        baseline=baseline,
        normalise=normalise,
        final_in_steps=final_in_steps,
        parts=parts,
    )
    return spread(
        groups,
        decisions,
        values,
        coverage(decisions) if keys is not None else None,
        unfit=without_step_rewards(decisions),
        parts=parts,
        states=decisions.states[0] if keys is not None else None,
    )


def step_reward_advantages(
    decisions: Decisions,
    *,
    gamma: float = 1.0,
    baseline: Baseline = "state",
    normalise: Literal["mean", "std"] = "mean",
    final_in_steps: bool | None = None,
    parts: Parts | None = None,
) -> Floats:
    """[n] `step_reward` on columns; `parts` gets what they were made of."""
    if normalise not in ("mean", "std"):
        raise ConfigError(f"algorithm.credit_args.normalise: 'mean' or 'std', not {normalise!r}")
    returns = returns_to_go(decisions, gamma, final_in_steps)
    compare = standardised if normalise == "std" else centred

    def by(what: Callable[[Labels, Floats], Floats]) -> Floats:
        """Apply `what` among the decisions that are alike."""
        by_index = paired(decisions.group, decisions.turn)
        if baseline == "group":
            return what(decisions.group, returns)
        if baseline == "index":
            return what(by_index, returns)
        matched = members_per_state(decisions) >= 2
        return np.where(matched, what(decisions.states[0], returns), what(by_index, returns))

    if baseline not in get_args(Baseline):
        raise ConfigError(
            f"algorithm.credit_args.baseline: 'state', 'index' or 'group', not {baseline!r}"
        )
    if parts is not None:
        parts.update({"return": returns, "baseline": by(means)})
        if normalise == "std":
            parts["deviation"] = by(deviations)
    return by(compare)


def without_step_rewards(decisions: Decisions) -> str | None:
    """Why decisions of which none has a step reward don't suit a method that lives on them."""
    if not len(decisions) or has_step_rewards(decisions):
        return None
    return (
        "no step has a reward. Give steps rewards (lightningrl.reward in the agent, or rules in the recipe),"
        " or use 'credit: broadcast'"
    )
