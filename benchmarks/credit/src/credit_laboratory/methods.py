"""The methods under test: the shipped functions, with the parameters that they are measured at."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from credit_laboratory.branches import Plan
from credit_laboratory.tasks import Environment, Floats, TwoAgents
from lightningrl.credit.broadcast import broadcast_advantages
from lightningrl.credit.compare import whitened
from lightningrl.credit.decisions import Decisions
from lightningrl.credit.discount import discount_advantages
from lightningrl.credit.fork_points import spread
from lightningrl.credit.forks import Forks, leave_one_out_fork_advantages, vine_advantages
from lightningrl.credit.g2po import g2po_advantages
from lightningrl.credit.gae import gae_advantages
from lightningrl.credit.gigpo import gigpo_advantages
from lightningrl.credit.group_td import group_td_advantages
from lightningrl.credit.hgpo import hgpo_advantages
from lightningrl.credit.mt_grpo import mt_grpo_advantages
from lightningrl.credit.naming import method_name
from lightningrl.credit.per_agent import per_agent_advantages
from lightningrl.credit.rtmc import rtmc_advantages
from lightningrl.credit.step_reward import step_reward_advantages

CONTROLS = ("broadcast normalise=mean", "broadcast")
"""The better of these is what the others are measured against."""


@dataclass(frozen=True)
class Method:
    """A shipped method at some parameters."""

    credit: str
    """As a recipe names it in `algorithm.credit`."""
    advantages: Callable[..., Floats]
    """`decisions -> [n]`, with `args`."""
    args: Mapping[str, Any] = field(default_factory=dict)
    """As a recipe has them in `algorithm.credit_args`."""
    levels: int = 1
    """History levels that it reads."""
    runs_on: Callable[[type[Environment]], bool] = lambda _: True
    """Tasks that it is defined on, and may differ from the controls on."""
    plan: Plan | None = None
    """Of a method that compares branches: how it forks. Its function is given the forks as well."""
    over_the_batch: bool = False
    """Whether it compares rollouts of different groups; if not, many seeds' groups go through it at once."""

    @property
    def name(self) -> str:
        """As `lightningrl compare --credit` takes it."""
        return method_name(self.credit, self.args)

    def __call__(self, decisions: Decisions, forks: Forks | None = None) -> Floats:
        """[n] credit."""
        given = (decisions,) if forks is None else (decisions, forks)
        return self.advantages(*given, **self.args)


def _steps(environment: type[Environment]) -> bool:
    return environment.rewards_steps


def _final(environment: type[Environment]) -> bool:
    return not environment.rewards_steps


def _matched(environment: type[Environment]) -> bool:
    return not environment.unique_states


def _long(environment: type[Environment]) -> bool:
    return environment.turns > 1 and _matched(environment)


def _per_agent(decisions: Decisions) -> Floats:
    """The solver has rewards of its own, always 1; the planner is paid by the outcome."""
    solver = decisions.agent == 1
    return per_agent_advantages(
        replace(decisions, rewarded=solver, reward=solver.astype(np.float64))
    )


def _dr_mas(decisions: Decisions) -> Floats:
    """All agents are paid by the outcome."""
    return per_agent_advantages(decisions, normalise="std", over="decisions")


def _without_metrics(
    advantages: Callable[..., tuple[Floats, dict[str, float]]],
) -> Callable[..., Floats]:
    return lambda *columns, **args: advantages(*columns, **args)[0]


_gigpo = _without_metrics(gigpo_advantages)

_FORKED = Plan(spread, group=4, per_group=1, members=2)
"""Of the shares of rollouts and branches that were tried on the tuning seeds the one that needed the fewest tokens."""

METHODS: tuple[Method, ...] = (
    Method("broadcast", broadcast_advantages, {"normalise": "mean"}),
    Method("broadcast", broadcast_advantages),
    Method(
        "broadcast",
        broadcast_advantages,
        {"normalise": "reinforce++"},
        runs_on=_matched,
        over_the_batch=True,
    ),
    Method("discount", discount_advantages, {"discount": 0.9}, runs_on=_long),
    Method(
        "step_reward",
        step_reward_advantages,
        {"gamma": 0.0, "final_in_steps": True},
        runs_on=_steps,
    ),
    Method(
        "step_reward",
        step_reward_advantages,
        {"gamma": 1.0, "final_in_steps": True},
        runs_on=_steps,
    ),
    Method("mt_grpo", mt_grpo_advantages, runs_on=_steps),
    Method("per_agent", _per_agent, runs_on=lambda task: issubclass(task, TwoAgents)),
    Method("dr_mas", _dr_mas, runs_on=_final),
    Method("gigpo", _gigpo),
    Method("gigpo", _gigpo, {"normalise": "std"}),
    Method("hgpo", _without_metrics(hgpo_advantages), levels=3),
    Method("group_td", _without_metrics(group_td_advantages)),
    Method("g2po", _without_metrics(g2po_advantages)),
    Method("rtmc", _without_metrics(rtmc_advantages), runs_on=_final),
    Method("vine", _without_metrics(vine_advantages), runs_on=_final, plan=_FORKED),
    Method(
        "leave_one_out_fork",
        _without_metrics(leave_one_out_fork_advantages),
        runs_on=_final,
        plan=_FORKED,
    ),
)
"""In the order of the table; `gae`, which needs a critic, is `TableCritic`."""

GAE = "gae"
"""The name of the method whose values come from `TableCritic`."""


def methods_of(environment: type[Environment]) -> list[str]:
    """Names of the methods that run on a task, in the order of the table."""
    names = [one.name for one in METHODS if one.runs_on(environment)]
    return [*names, GAE] if _matched(environment) else names


class TableCritic:
    """A value per observation, moved towards the mean target of its visits: stands for verl's critic."""

    def __init__(self, observations: int, rate: float = 0.3) -> None:
        self._values = np.zeros(observations)
        self._rate = rate

    def advantages(self, decisions: Decisions, observed: np.ndarray) -> Floats:
        """Credit by the shipped `gae` on this critic's values; then the critic learns its targets."""
        values = self._values[observed]
        raw = gae_advantages(decisions, values, gamma=0.99, lam=0.95)
        visits = np.bincount(observed, minlength=len(self._values))
        targets = np.bincount(observed, raw + values, minlength=len(self._values))
        seen = visits > 0
        mean = targets[seen] / visits[seen]
        self._values[seen] += self._rate * (mean - self._values[seen])
        return whitened(raw, decisions.tokens)
