"""Turn discount: a decision counts less the further it is from the end.

With d the discount and T_i the decisions of member i:

| form | credit of decision t | source |
|---|---|---|
| `advantage` | d^(T_i - t) (R_i - mean R) | the form we recommend: the end has the broadcast's credit |
| `reward` | rho_t minus its mean over all decisions of the group, rho_t = r_t + d rho_(t+1) | AReaL, `turn_discount` |

With `reward` the mean is over decisions, so long rollouts count more in it and the early decisions of a winner
can get less than 0; that is AReaL's convention, kept for comparison. At d = 1 `advantage` is the broadcast
`mean`. In the laboratory (docs/credit-methods.md) d = 0.9 never helped, and it is harmful where early
decisions decide; hence the default 1.

Degenerate cases: a group of one gives 0 with `advantage`, and its returns minus their own mean with `reward`;
equal rewards give 0 with `advantage`, a slope over time with `reward`. Among parallel agents the last decision
is the one that started last.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from lightningrl.credit.broadcast import broadcast_advantages
from lightningrl.credit.columns import read_decisions
from lightningrl.credit.compare import centred, counts, means
from lightningrl.credit.decisions import Decisions, Floats, Parts, spread
from lightningrl.credit.result import Credit
from lightningrl.credit.rewards import returns_to_go
from lightningrl.errors import ConfigError
from lightningrl.experience.transition import Group
from lightningrl.user_input.arguments import Share


def discount(
    groups: Sequence[Group],
    *,
    discount: Share = 1.0,
    form: Literal["advantage", "reward"] = "advantage",
    final_in_steps: bool | None = None,
) -> Credit:
    """Broadcast or returns to go, discounted per decision.

    Args:
        groups: any number, of any sizes.
        discount: per decision, from 0 to 1.
        form: what is discounted; see the module.
        final_in_steps: see `rewards.rewards`; for `reward` alone.

    Raises:
        ConfigError: there is no such form.
    """
    decisions, parts = read_decisions(groups, paths=form == "reward"), Parts()
    values = discount_advantages(
        decisions, discount=discount, form=form, final_in_steps=final_in_steps, parts=parts
    )
    return spread(groups, decisions, values, parts=parts)


def discount_advantages(
    decisions: Decisions,
    *,
    discount: float = 1.0,
    form: Literal["advantage", "reward"] = "advantage",
    final_in_steps: bool | None = None,
    parts: Parts | None = None,
) -> Floats:
    """[n] `discount` on columns; `parts` gets what they were made of."""
    parts = Parts() if parts is None else parts
    if form == "reward":
        returns = returns_to_go(decisions, discount, final_in_steps)
        parts.update({"return": returns, "baseline": means(decisions.group, returns)})
        return centred(decisions.group, returns)
    if form != "advantage":
        raise ConfigError(f"algorithm.credit_args.form: 'advantage' or 'reward', not {form!r}")
    to_end = counts(decisions.member) - 1 - decisions.turn
    parts["discount"] = np.power(float(discount), to_end)
    return broadcast_advantages(decisions, "mean", parts) * parts["discount"]
