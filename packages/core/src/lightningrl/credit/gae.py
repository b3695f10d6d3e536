"""GAE over decisions: PPO with a critic that values each decision's prompt.

V_t is the critic's value at the last token of decision t's prompt. delta_t = r_t + gamma V_(t+1) - V_t, V = 0
after the end; A_t = delta_t + gamma lambda A_(t+1); the critic's target is A_t + V_t; credit is A whitened over
the batch's trained tokens (arXiv 1506.02438; turn-level as in RAGEN, with turns taken from the recorded calls
and not from where rewards are non-zero). All tokens of a decision share its credit.

Degenerate cases: a group of one is fine, nothing is compared within groups. A member whose conversations branch
takes the mean over the branches. A rollout whose last answer was cut at its token limit has ended like any other,
unless `bootstrap` says otherwise: then V behind that answer takes the place of 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import ClassVar

import numpy as np

from lightningrl.credit.columns import read_decisions
from lightningrl.credit.compare import backward, following_mean, whitened
from lightningrl.credit.decisions import Decisions, Floats, spread
from lightningrl.credit.rewards import rewards
from lightningrl.credit.stateful import Outcome, State, StatefulAssigner, Values
from lightningrl.transition import Group


@dataclass(frozen=True)
class GeneralisedAdvantage(StatefulAssigner):
    """`gae`: see the module. It remembers nothing; the critic does."""

    needs_values: ClassVar[bool] = True

    gamma: float = 1.0
    """Discount per decision."""
    lam: float = 0.95
    """Lambda: 0 is one-step TD, 1 the return minus the value."""
    whiten: bool = True
    """Whether credit is whitened over the batch's trained tokens."""
    final_in_steps: bool | None = None
    """See `rewards.rewards`."""
    bootstrap: bool = False
    """Whether a rollout whose last answer was cut at its token limit counts as going on behind it. Right where
    the limit is not part of the task, so that the final reward says nothing of what was still to come."""

    @property
    def needs_ends(self) -> bool:
        """See `StatefulAssigner.needs_ends`."""
        return self.bootstrap

    def assign(
        self,
        groups: Sequence[Group],
        *,
        state: State,
        values: Values | None,
        ends: Values | None = None,
    ) -> Outcome:
        """See `StatefulAssigner.assign`; `state` is passed on."""
        assert values is not None
        decisions = read_decisions(groups, paths=True)
        flat = np.array(list(chain.from_iterable(chain.from_iterable(values))), np.float64)
        value = flat[decisions.slot] if len(decisions) else np.zeros(0)
        behind = np.array(list(chain.from_iterable(chain.from_iterable(ends or []))), np.float64)
        raw = gae_advantages(
            decisions,
            value,
            gamma=self.gamma,
            lam=self.lam,
            final_in_steps=self.final_in_steps,
            ends=behind[decisions.slot] if self.bootstrap and len(decisions) else None,
        )
        credit = whitened(raw, decisions.tokens) if self.whiten and len(raw) else raw
        metrics = {"value_mean": float(value.mean())} if len(value) else {}
        targets = spread(groups, decisions, raw + value)
        return Outcome(spread(groups, decisions, credit, metrics), state, list(targets))


def gae_advantages(
    decisions: Decisions,
    values: Floats,
    *,
    gamma: float,
    lam: float,
    final_in_steps: bool | None = None,
    ends: Floats | None = None,
) -> Floats:
    """[n] advantages, not whitened, of decisions that the critic gave `values` [n].

    `ends` [n] is what it expects behind decisions that nothing follows. `None`: 0 for all.
    """
    following = following_mean(decisions, values)
    if ends is not None:
        following = following + ends
    deltas = rewards(decisions, final_in_steps) - values + gamma * following
    return backward(decisions, deltas, gamma * lam)
