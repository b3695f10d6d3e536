"""What doesn't work together is refused at the start, with the keys and the reason."""

from typing import Any

import pytest

from lightningrl.errors import ConfigError
from lightningrl.recipe import Recipe, parse_recipe
from lightningrl.recipe.presets import PRESETS
from lightningrl_verl.start.combinations import REFUSALS, check_combinations


def recipe(**changes: Any) -> Recipe:
    tree: dict[str, Any] = {
        "name": "demo",
        "agent": "a:b",
        "policies": {"policy": {"model": "m"}},
        "algorithm": {"iterations": 4, "tasks_per_iteration": 2, "group_size": 3},
        "optimiser": {"learning_rate": 0.1},
    }
    for key, value in changes.items():
        tree[key] = {**tree.get(key, {}), **value} if isinstance(value, dict) else value
    return parse_recipe(tree)


def check(one: Recipe) -> None:
    assert one.algorithm is not None
    check_combinations(one, needs_values=one.algorithm.credit == "gae")


PLUS_PLUS = {"credit_args": {"normalise": "reinforce++"}}

REFUSED: list[dict[str, Any]] = [
    {"algorithm": {"loss": "gspo"}},
    {"algorithm": {"group_size": 1, "min_group": 1}},
    {"algorithm": {"credit": "vine"}},
    {"algorithm": {"credit": "gigpo", "forks": {}}},
    {"algorithm": {"credit": "mine:own", "forks": {}, "group_size": 1, "min_group": 1}},
    {"algorithm": {"credit": "vine", "forks": {}}, "live": {"min_rollouts": 4}},
    {"algorithm": {"credit": "gae"}},
    {"critic": {}},
    {"algorithm": {"preset": "ppo", "further_tasks": 4}},
    {"trainer": {"train_layers": "last 2"}, "verl": {"model": {"lora_rank": 4}}},
    {"algorithm": {"max_staleness": 1}},
    {"algorithm": {"preset": "gspo", "importance": "token"}},
    {
        "policies": {
            "one": {"model": "m", "agents": ["planner"]},
            "two": {"model": "m", "agents": ["solver", "planner"]},
        }
    },
    {"algorithm": {"tasks_per_iteration": 0}},
    {"live": {"min_rollouts": 4}, "gateway": {"port": 8700}},
    {"live": {"min_rollouts": 4}, "algorithm": PLUS_PLUS},
]
"""Recipes that are refused, in the order of the table."""


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_accepted_as_they_are(name: str) -> None:
    check(recipe(algorithm={"preset": name}))


def test_a_presets_credit_may_be_replaced() -> None:
    check(recipe(algorithm={"preset": "ppo", "credit": "broadcast"}))


@pytest.mark.parametrize(
    "algorithm",
    [PLUS_PLUS, {"preset": "ppo"}, {**PLUS_PLUS, "tasks_per_iteration": 0, "group_size": 1}],
)
def test_live_rollouts_are_trained_by_methods_that_need_no_group(algorithm: dict[str, Any]) -> None:
    critic = {"critic": {}} if algorithm.get("preset") else {}
    live = {"live": {"min_rollouts": 4}, "gateway": {"port": 8700}}
    check(recipe(algorithm=algorithm, **critic, **live))


@pytest.mark.parametrize(("place", "changes"), list(enumerate(REFUSED)))
def test_each_refusal_of_the_table_names_its_keys_and_reason(
    place: int, changes: dict[str, Any]
) -> None:
    with pytest.raises(ConfigError) as caught:
        check(recipe(**changes))
    assert str(caught.value) == f"{REFUSALS[place].keys}: {REFUSALS[place].reason}"


def test_no_refusal_of_the_table_is_untested() -> None:
    assert len(REFUSED) == len(REFUSALS)
