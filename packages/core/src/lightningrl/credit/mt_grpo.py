"""MT-GRPO: the rollout's advantage plus the step's own.

Credit of decision t of member i = A_i + weight * S_it, with A_i GRPO's advantage of the final rewards and
S_it = (r_it - mean) / (std + 1e-6) over the group's decisions with the same turn number (arXiv 2505.11821,
whose code is for two turns and adds 1e-4; this is its extension to any number).

Degenerate cases: a group of one and equal rewards give 0 in the part that they concern; the last survivor at a
turn number gets A_i alone; a missing step reward counts as 0; a batch without step rewards gets A_i alone, and is
reported as `Credit.unfit`.
"""

from __future__ import annotations

from collections.abc import Sequence

from lightningrl.credit.broadcast import broadcast_advantages
from lightningrl.credit.columns import read_decisions
from lightningrl.credit.compare import paired, standardised
from lightningrl.credit.decisions import Decisions, Floats, Parts, spread
from lightningrl.credit.result import Credit
from lightningrl.credit.step_reward import without_step_rewards
from lightningrl.experience.transition import Group
from lightningrl.user_input.arguments import AtLeastZero


def mt_grpo(groups: Sequence[Group], *, weight: AtLeastZero = 1.0) -> Credit:
    """GRPO on final rewards plus GRPO on the step rewards of each turn.

    Args:
        groups: any number, of any sizes.
        weight: of the step's part.
    """
    decisions, parts = read_decisions(groups), Parts()
    values = mt_grpo_advantages(decisions, weight=weight, parts=parts)
    return spread(groups, decisions, values, unfit=without_step_rewards(decisions), parts=parts)


def mt_grpo_advantages(
    decisions: Decisions, *, weight: float = 1.0, parts: Parts | None = None
) -> Floats:
    """[n] `mt_grpo` on columns; `parts` gets what they were made of."""
    own = standardised(paired(decisions.group, decisions.turn), decisions.reward)
    rollout = broadcast_advantages(decisions, "std", parts)
    if parts is not None:
        parts.update({"rollout": rollout, "step": weight * own})
    return rollout + weight * own
