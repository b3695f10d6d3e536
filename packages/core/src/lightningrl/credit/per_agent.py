"""Per agent: each role is compared with itself in the other members of the group.

With q_iu the reward of role u in member i, the mean of the step rewards on its decisions, or the final reward
R_i where the role has none in the whole group: credit = q_iu - mean over the group's members of q_u. One value
per member and role, so a talkative role doesn't weigh more in its own baseline (as in rLLM's per-role groups
and prime-rl's `hierarchical_grpo`).

`dr_mas` is Dr. MAS (arXiv 2602.08847): the same reward, standardised over the role's *decisions* in the group, so that
a member in which the role decided k times counts k times: credit = (q_iu - mu_u) / (sigma_u + 1e-6), sigma_u the sample
deviation as in the published code. Where a role decides equally often in all members, mu_u is `per_agent`'s mean. The
paper's reward is the rollout's final one for all agents; step rewards of a role take its place here, as above. A role's
single decision in a group gives 0 (the published code gives it its raw reward).

`running_baseline` is RAE (SPIRAL, arXiv 2506.24119): credit = q - b_u *before* the update
b_u <- decay b_u + (1 - decay) q, b_u = 0 at first; it needs no group. Members are taken in order.

Degenerate cases: a role that only one member of the group took, and equal rewards, give 0. A member whose role
has no step reward while the same role of another member has one is left out of that role's comparison. With
one role and no step rewards this is `broadcast` with `mean`. Roles are told apart by the agents around them, too:
`maths/writer` is another one than `news/writer`. Without agent names all decisions are one role. Where no agent of
`train` took a step all credit is 0, which is reported as `Credit.unfit`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from msgspec import Meta

from lightningrl.credit.columns import read_decisions
from lightningrl.credit.compare import centred, deviations, means, paired, standardised
from lightningrl.credit.decisions import Decisions, Floats, Labels, Parts, spread
from lightningrl.credit.result import Credit
from lightningrl.credit.stateful import Outcome, State, StatefulAssigner, Values
from lightningrl.errors import ConfigError
from lightningrl.experience.transition import Group
from lightningrl.schema import is_among, names_of
from lightningrl.user_input.names import suggest

Over = Literal["members", "decisions"]
"""What a role's mean and deviation in a group are of."""


def per_agent(
    groups: Sequence[Group],
    *,
    normalise: Literal["mean", "std"] = "mean",
    over: Over = "members",
    train: Sequence[str] | None = None,
) -> Credit:
    """Each role's reward against the same role's mean in its group.

    Args:
        groups: any number, of any sizes.
        normalise: `std` divides by the role's sample deviation in the group.
        over: what mean and deviation are of: each of the role's members once, or each of its decisions.
        train: names of the agents whose decisions get credit, as in `train_agents`; the others get 0. `None`: all.

    Raises:
        ConfigError: `normalise` or `over` has no such value.
    """
    decisions, parts = read_decisions(groups), Parts()
    values = per_agent_advantages(
        decisions, normalise=normalise, over=over, train=train, parts=parts
    )
    return spread(groups, decisions, values, unfit=_without(decisions, train), parts=parts)


def dr_mas(groups: Sequence[Group], *, train: Sequence[str] | None = None) -> Credit:
    """Each role's reward, standardised over the role's decisions in its group.

    Args:
        groups: any number, of any sizes.
        train: as in `per_agent`.
    """
    return per_agent(groups, normalise="std", over="decisions", train=train)


def per_agent_advantages(
    decisions: Decisions,
    *,
    normalise: Literal["mean", "std"] = "mean",
    over: Over = "members",
    train: Sequence[str] | None = None,
    parts: Parts | None = None,
) -> Floats:
    """[n] `per_agent` on columns; `parts` gets what they were made of."""
    if normalise not in ("mean", "std"):
        raise ConfigError(f"algorithm.credit_args.normalise: 'mean' or 'std', not {normalise!r}")
    if over not in ("members", "decisions"):
        raise ConfigError(f"algorithm.credit_args.over: 'members' or 'decisions', not {over!r}")
    compare = standardised if normalise == "std" else centred
    part, first, q = _roles(decisions)
    role = paired(decisions.group[first], decisions.agent[first])
    if over == "decisions":  # what is compared are the decisions themselves
        role, q, part = role[part], q[part], np.arange(len(part))
    scored = np.isfinite(q)
    values = np.zeros(len(q))
    values[scored] = compare(role[scored], q[scored])
    if parts is not None:
        baseline = np.full(len(q), np.nan)
        baseline[scored] = means(role[scored], q[scored])
        parts.update({"reward": q[part], "baseline": baseline[part]})
        if normalise == "std":
            deviation = np.full(len(q), np.nan)
            deviation[scored] = deviations(role[scored], q[scored])
            parts["deviation"] = deviation[part]
    return np.where(_trained(decisions, train), values[part], 0.0)


@dataclass(frozen=True)
class RunningBaseline(StatefulAssigner):
    """RAE: each role against the running mean of its own rewards; groups may have one member."""

    decay: Annotated[float, Meta(ge=0.0, lt=1.0)] = 0.95
    """Of the baselines, from 0 to below 1."""
    train: Sequence[str] | None = None
    """As in `per_agent`."""

    def assign(
        self,
        groups: Sequence[Group],
        *,
        state: State,
        values: Values | None,
        ends: Values | None = None,
    ) -> Outcome:
        """See `StatefulAssigner.assign`; the state is `{"baselines": {agent: b}}`, the agent as `team/maths`."""
        del values, ends  # no critic
        decisions = read_decisions(groups)
        part, first, q = _roles(decisions)
        names = _names(decisions)
        baselines: dict[str, float] = dict(state.get("baselines", {}))
        apart, before = np.zeros(len(q)), np.full(len(q), np.nan)
        for row in np.argsort(first):
            if np.isfinite(q[row]):
                name = names[decisions.agent[first[row]]]
                baseline = baselines.get(name, 0.0)
                apart[row], before[row] = q[row] - baseline, baseline
                baselines[name] = self.decay * baseline + (1.0 - self.decay) * float(q[row])
        credit = np.where(_trained(decisions, self.train), apart[part], 0.0)
        metrics = {f"baseline/{name or 'agent'}": value for name, value in baselines.items()}
        credited = spread(
            groups,
            decisions,
            credit,
            metrics,
            unfit=_without(decisions, self.train),
            parts={"reward": q[part], "baseline": before[part]},
        )
        return Outcome(credited, {"baselines": baselines})


def _roles(decisions: Decisions) -> tuple[Labels, Labels, Floats]:
    """Per decision its (member, role); per (member, role) a first decision and q, NaN where missing."""
    if not len(decisions):
        return np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0)
    labels = decisions.member * (int(decisions.agent.max()) + 1) + decisions.agent
    _, first, part = np.unique(labels, return_index=True, return_inverse=True)
    part = part.reshape(-1)
    given = np.bincount(part, decisions.rewarded)
    own = np.bincount(part, decisions.reward) / np.maximum(given, 1)
    role = paired(decisions.group[first], decisions.agent[first])
    paid = np.bincount(role, given)[role] > 0
    final = decisions.final[decisions.member[first]]
    return part, first, np.where(paid, np.where(given > 0, own, np.nan), final)


def _trained(decisions: Decisions, train: Sequence[str] | None) -> np.ndarray:
    if train is None:
        return np.ones(len(decisions), np.bool_)
    return np.isin(decisions.agent, np.flatnonzero(_meant(decisions, train)))


def _meant(decisions: Decisions, train: Sequence[str]) -> list[bool]:
    """Of each of the agents whether `train` names it, alone or with those around it."""
    return [is_among(train, agent or "", within) for agent, within in decisions.agents]


def _names(decisions: Decisions) -> list[str]:
    """Of each of the agents its name, with those around it in front; empty where nobody said."""
    return [names_of(agent or "", within)[0] for agent, within in decisions.agents]


def _without(decisions: Decisions, train: Sequence[str] | None) -> str | None:
    """Why decisions of which none is by an agent of `train` don't suit the method."""
    if train is None or not len(decisions) or any(_meant(decisions, train)):
        return None
    known = _names(decisions)
    return (
        f"none of the agents {list(train)} took a step.{suggest(train[0] if train else '', known)}"
    )
