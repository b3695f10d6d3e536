"""Which settings of an algorithm work together: one table of those that don't, with the reason.

Invariant: what is not refused here trains; `docs/reference/algorithms.md` is written from this table.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from lightningrl.credit.shipped import BY_FORKS, SHIPPED
from lightningrl.errors import ConfigError
from lightningrl.recipe import Algorithm, Recipe
from lightningrl_verl.worker.backend_config import dotted

_WITHIN_GROUP = frozenset(
    {
        "broadcast",
        "discount",
        "dr_mas",
        "g2po",
        "gigpo",
        "group_td",
        "hgpo",
        "leave_one_out_fork",
        "mt_grpo",
        "per_agent",
        "rtmc",
        "step_reward",
        "vine",
    }
)
"""Shipped methods whose credit is 0 for a rollout that has none to be compared with."""


_ROUTED = ("replaces", "agents")


def _compares(algorithm: Algorithm) -> bool:
    """Whether credit needs several rollouts of a task; REINFORCE++ compares with the whole batch."""
    return (
        algorithm.credit in _WITHIN_GROUP
        and algorithm.credit_args.get("normalise") != "reinforce++"
    )


def _without_branches(algorithm: Algorithm) -> bool:
    """Whether credit is a shipped method that knows of no branches."""
    return algorithm.credit in SHIPPED and algorithm.credit not in BY_FORKS


def _overlap(recipe: Recipe) -> bool:
    """Whether a name is routed to two policies."""
    for kind in _ROUTED:
        names = [name for policy in recipe.policies.values() for name in set(getattr(policy, kind))]
        if len(names) != len(set(names)):
            return True
    return False


def default_importance(
    algorithm: Algorithm, dtype: Literal["fp32", "bf16", "auto"]
) -> Literal["none", "token", "sequence"]:
    """`algorithm.importance` where a recipe has none; of `auto` what it is in fp32.

    In bf16 engine and trainer are apart by some 1e-2 nats, which the weights correct.
    """
    if dtype != "bf16":
        return "none"
    return "sequence" if algorithm.loss == "gspo" else "token"


@dataclass(frozen=True)
class Refusal:
    """A combination that is refused."""

    keys: str
    """Whose combination it is."""
    applies: Callable[[Recipe, Algorithm, bool], bool]
    """Asked with the recipe, its `algorithm`, and whether credit needs a critic's values."""
    reason: str
    """Why, and what to set instead."""


REFUSALS: tuple[Refusal, ...] = (
    Refusal(
        "algorithm.loss, algorithm.rows",
        lambda _, algorithm, __: algorithm.loss == "gspo" and algorithm.rows == "merged",
        "GSPO has one ratio per row, which calls that share a row would share; set 'algorithm.rows: calls'",
    ),
    Refusal(
        "algorithm.credit, algorithm.group_size",
        lambda _, algorithm, __: _compares(algorithm) and algorithm.group_size < 2,
        "credit is relative to the group, so a group of one teaches nothing; set 'algorithm.group_size'"
        " to 2 or more",
    ),
    Refusal(
        "algorithm.credit, algorithm.forks",
        lambda _, algorithm, __: algorithm.credit in BY_FORKS and algorithm.forks is None,
        "this method compares forks of the rollouts, and there are none; add 'algorithm.forks', which may be empty:"
        " 'forks: {}'",
    ),
    Refusal(
        "algorithm.forks, algorithm.credit",
        lambda _, algorithm, __: algorithm.forks is not None and _without_branches(algorithm),
        "this method would compare branches with nothing that they have in common; set 'algorithm.credit' to 'vine' or"
        " 'leave_one_out_fork', or leave 'algorithm.forks' out",
    ),
    Refusal(
        "algorithm.forks, algorithm.group_size",
        lambda _, algorithm, __: algorithm.forks is not None and algorithm.group_size < 2,
        "a group of one has no value of the state in which it begins; set 'algorithm.group_size' to 2 or more",
    ),
    Refusal(
        "algorithm.forks, live",
        lambda recipe, algorithm, _: algorithm.forks is not None and recipe.live is not None,
        "what an agent did for people can't be done again; leave 'algorithm.forks' out, or train on tasks alone",
    ),
    Refusal(
        "algorithm.credit, critic",
        lambda recipe, _, values: values and recipe.critic is None,
        "this method needs a critic's values; add a section 'critic', which may be empty: 'critic: {}'",
    ),
    Refusal(
        "algorithm.credit, critic",
        lambda recipe, _, values: not values and recipe.critic is not None,
        "this method needs no values, so the critic would be trained for nothing; leave 'critic' out, or"
        " set 'algorithm.credit: gae'",
    ),
    Refusal(
        "algorithm.further_tasks, algorithm.credit",
        lambda _, algorithm, values: (
            algorithm.further_tasks > 0 and (values or not _compares(algorithm))
        ),
        "dynamic sampling drops groups whose rewards are all equal, which teach this method as much as"
        " others; set 'algorithm.further_tasks: 0'",
    ),
    Refusal(
        "trainer.train_layers, verl",
        lambda recipe, _, __: (
            recipe.trainer.train_layers is not None
            and bool(dotted(recipe.verl).get("model.lora_rank"))
        ),
        "with adapters nothing but them is trained; leave 'trainer.train_layers' or 'model.lora_rank' out",
    ),
    Refusal(
        "algorithm.max_staleness, algorithm.importance",
        lambda recipe, algorithm, _: (
            algorithm.max_staleness > 0
            and (algorithm.importance or default_importance(algorithm, recipe.trainer.dtype))
            == "none"
        ),
        "older weights sampled from another distribution; set 'algorithm.importance: token' or"
        " 'sequence' as well",
    ),
    Refusal(
        "algorithm.loss, algorithm.importance",
        lambda _, algorithm, __: algorithm.loss == "gspo" and algorithm.importance == "token",
        "GSPO's ratio is one per row, so its weights are too; set 'algorithm.importance: sequence'",
    ),
    Refusal(
        "policies",
        lambda recipe, _, __: _overlap(recipe),
        "two policies answer for the same model or agent name; give each name to one of them",
    ),
    Refusal(
        "algorithm.tasks_per_iteration",
        lambda recipe, algorithm, _: algorithm.tasks_per_iteration == 0 and recipe.live is None,
        "without tasks an iteration has nothing to train on; set 1 or more, or add a section 'live'",
    ),
    Refusal(
        "live, algorithm.credit",
        lambda recipe, algorithm, _: recipe.live is not None and _compares(algorithm),
        "each live rollout is a group of one, in which this method has nothing to compare; set"
        " 'algorithm.credit_args.normalise: reinforce++', or 'algorithm.credit: gae' and a critic",
    ),
    Refusal(
        "live, gateway.port",
        lambda recipe, _, __: recipe.live is not None and recipe.gateway.port == 0,
        "agents that serve people need an address that stays; set 'gateway.port'",
    ),
)
"""In the order in which they are looked at."""


def check_combinations(recipe: Recipe, *, needs_values: bool) -> None:
    """Refuse what doesn't work together.

    Args:
        recipe: with an `algorithm`.
        needs_values: whether its credit assigner needs a critic's values.

    Raises:
        ConfigError: with the keys and the reason.
    """
    algorithm = recipe.algorithm
    assert algorithm is not None
    for refusal in REFUSALS:
        if refusal.applies(recipe, algorithm, needs_values):
            raise ConfigError(f"{refusal.keys}: {refusal.reason}")
