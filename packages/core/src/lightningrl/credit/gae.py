"""GAE over decisions: PPO with a critic that values each decision's prompt.

V_t is the critic's value at the last token of decision t's prompt. delta_t = r_t + gamma V_(t+1) - V_t, V = 0
after the end; A_t = delta_t + gamma lambda A_(t+1); the critic's target is A_t + V_t; credit is A whitened over
the batch's trained tokens (arXiv 1506.02438; turn-level as in RAGEN, with turns taken from the recorded calls
and not from where rewards are non-zero). All tokens of a decision share its credit.

A decision without a value, which nobody trains (a frozen policy's, an agent's outside `train_agents`), is a part
of the world that the others act in. It gets credit 0 and target 0, and from one valued decision to the next, k
decisions on, delta_t = r_t + ... + gamma^(k-1) r_(t+k-1) + gamma^k V_(t+k) - V_t and
A_t = delta_t + gamma^k lambda A_(t+k): a step of k ticks (Sutton, Precup and Singh 1999, semi-Markov decision
processes). So with lambda 1 a target is the return of all decisions, whoever is trained.

Degenerate cases: a group of one is fine, nothing is compared within groups. A member whose conversations branch
takes the mean over the branches. A rollout whose last answer was cut at its token limit has ended like any other,
unless `bootstrap` says otherwise: then V behind that answer takes the place of 0. Without any value all credit is 0.
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
from lightningrl.experience.transition import Group
from lightningrl.user_input.arguments import Share


@dataclass(frozen=True)
class GeneralisedAdvantage(StatefulAssigner):
    """`gae`: see the module. It remembers nothing; the critic does."""

    needs_values: ClassVar[bool] = True

    gamma: Share = 1.0
    """Discount per decision."""
    lam: Share = 0.95
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
        valued = ~np.isnan(value)
        credit = whitened(raw, decisions.tokens * valued) if self.whiten else raw
        metrics = {"value_mean": float(value[valued].mean())} if valued.any() else {}
        targets = spread(groups, decisions, np.where(valued, raw + value, 0.0))
        credited = spread(
            groups,
            decisions,
            np.where(valued, credit, 0.0),
            metrics,
            parts={
                "reward": rewards(decisions, self.final_in_steps),
                "value": value,
                "advantage": np.where(valued, raw, np.nan),
                "target": np.where(valued, raw + value, np.nan),
            },
        )
        return Outcome(credited, state, list(targets))


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

    Where the value is NaN there is none, and the advantage is 0. `ends` [n] is what the critic expects behind
    decisions that nothing follows. `None`: 0 for all.
    """
    valued = ~np.isnan(values)
    earned = rewards(decisions, final_in_steps)
    if ends is not None:
        earned = earned + gamma * ends
    # A decision without a value is worth what it earned and what follows, so its TD error is 0.
    known = backward(
        decisions, np.where(valued, values, earned), np.where(valued, 0.0, float(gamma))
    )
    deltas = earned - known + gamma * following_mean(decisions, known)
    decay = np.where(valued, gamma * lam, float(gamma))
    advantages = backward(decisions, np.where(valued, deltas, 0.0), decay)
    return np.where(valued, advantages, 0.0)
