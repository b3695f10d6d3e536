"""Broadcast: every decision of a rollout gets the rollout's own advantage.

With R_i the final reward of member i of a group of N:

| form | advantage | source |
|---|---|---|
| `std` | (R_i - mean R) / (std R + 1e-6), sample deviation | GRPO, arXiv 2402.03300, eq. 4; verl 0.9.1 |
| `mean` | R_i - mean R | Dr. GRPO, arXiv 2503.20783 |
| `leave_one_out` | R_i - mean of the others = N / (N - 1) (R_i - mean R) | RLOO, arXiv 2402.14740 |
| `max_rl` | (R_i - mean R) / mean R, 0 where the mean isn't above 0 | MaxRL, as in prime-rl: rare success counts more |
| `reinforce++` | R_i, whitened over all trained tokens of the batch | arXiv 2501.03262; verl `masked_whiten` |
| `reinforce++_baseline` | R_i - mean R, whitened so | the same |

Mean and deviation of a group are over members, never over decisions (verl-agent's default takes them over
decisions, so that long rollouts count more).

Degenerate cases. A group of one, and a group whose rewards are all equal: exactly 0 (verl's GRPO and RLOO give
a group of one its raw reward); with `reinforce++`, which has no group, a group of one counts like any other.
A batch whose tokens all have one reward, or with fewer than two tokens: `reinforce++` gives 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np

from lightningrl.credit.columns import read_decisions
from lightningrl.credit.compare import (
    centred,
    counts,
    deviations,
    means,
    standardised,
    whitened,
)
from lightningrl.credit.decisions import Decisions, Floats, Parts, spread
from lightningrl.credit.result import Credit
from lightningrl.errors import ConfigError
from lightningrl.experience.transition import Group
from lightningrl.user_input.names import suggest

Form = Literal["std", "mean", "leave_one_out", "max_rl", "reinforce++", "reinforce++_baseline"]
"""How a rollout's advantage is computed; see the module."""


def broadcast(groups: Sequence[Group], *, normalise: Form = "std") -> Credit:
    """The rollout's advantage, equal for all its decisions; the control that other methods must beat.

    Args:
        groups: any number, of any sizes.
        normalise: the form; see the module.

    Raises:
        ConfigError: `normalise` is no form.
    """
    decisions, parts = read_decisions(groups), Parts()
    values = broadcast_advantages(decisions, normalise, parts)
    return spread(groups, decisions, values, parts=parts)


def broadcast_advantages(
    decisions: Decisions, normalise: Form = "std", parts: Parts | None = None
) -> Floats:
    """[n] `broadcast` on columns; `parts` gets what they were made of."""
    if normalise not in get_args(Form):
        raise ConfigError(
            f"algorithm.credit_args.normalise: no form {normalise!r}."
            f"{suggest(str(normalise), get_args(Form))}"
        )
    final, group = decisions.final, decisions.member_group
    if parts is not None:
        parts.update(_parts(decisions, normalise))
    if normalise == "std":
        return standardised(group, final)[decisions.member]
    if normalise == "reinforce++":
        return whitened(final[decisions.member], decisions.tokens)
    apart = centred(group, final)
    if normalise == "leave_one_out":
        size = counts(group)
        apart = apart * size / (size - 1).clip(1)
    if normalise == "max_rl":
        mean = means(group, final)
        apart = np.where(mean > 0, apart / np.where(mean > 0, mean, 1.0), 0.0)
    spread_out = apart[decisions.member]
    if normalise == "reinforce++_baseline":
        return whitened(spread_out, decisions.tokens)
    return spread_out


def _parts(decisions: Decisions, normalise: Form) -> Parts:
    """`reward`, what it is compared with (`baseline`), and by what the difference is divided (`deviation`)."""
    final, group, member = decisions.final, decisions.member_group, decisions.member
    parts = {"reward": final[member]}
    if normalise == "reinforce++":
        return parts
    baseline = means(group, final)
    if normalise == "leave_one_out":
        size = counts(group)
        baseline = np.where(size > 1, (baseline * size - final) / (size - 1).clip(1), final)
    parts["baseline"] = baseline[member]
    if normalise == "std":
        parts["deviation"] = deviations(group, final)[member]
    return parts
