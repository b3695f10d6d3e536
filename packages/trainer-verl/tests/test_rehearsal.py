"""What a rehearsal's iteration says of the recipe's: extrapolated, between two bounds."""

from __future__ import annotations

from pathlib import Path

import pytest

from lightningrl.errors import ConfigError
from lightningrl.recipe import LoadedRecipe, parse_recipe
from lightningrl_verl.start.rehearsal import estimate, small

LINE = {
    "iteration": 1,
    "timing/collect_seconds": 4.0,
    "timing/credit_seconds": 0.5,
    "timing/update_seconds": 3.0,
    "timing/checkpoint_seconds": 2.0,
    "timing/sync_seconds": 1.0,
    "timing/save_seconds": 1.5,
}


def test_what_grows_is_between_idle_slots_and_proportion() -> None:
    found = estimate(LINE, 8, 96)
    # 12 times as many: 12 * (4 + 0.5 + 3) + 2 + 1, or all of them collected in the same 4 s.
    assert (found.low, found.high) == (49.0, 93.0)
    assert "save" not in found.measured  # a part of the checkpoint


def test_of_fewer_rollouts_nothing_is_gained_by_idle_slots() -> None:
    found = estimate(LINE, 8, 4)
    assert found.low == found.high == 0.5 * 7.5 + 3.0


def _loaded(**algorithm: int) -> LoadedRecipe:
    keys = {"iterations": 50, "tasks_per_iteration": 12, "group_size": 16, **algorithm}
    recipe = parse_recipe(
        {
            "name": "demo",
            "agent": "a:b",
            "data": {"train": {"source": "m:f"}, "val": {"source": "m:f"}},
            "policies": {"policy": {"model": "m"}},
            "algorithm": keys,
            "optimiser": {"learning_rate": 0.1},
        }
    )
    return LoadedRecipe(recipe=recipe, path=Path("/here/recipe.yaml"))


@pytest.mark.parametrize(
    ("members", "tasks", "of_group"), [(16, 1, 8), (8, 1, 8), (4, 2, 4), (3, 2, 3), (1, 8, 1)]
)
def test_the_rehearsal_has_about_eight_rollouts_in_the_recipes_groups(
    members: int, tasks: int, of_group: int
) -> None:
    made = small(_loaded(group_size=members, min_group=min(members, 2)), Path("runs/x")).recipe
    assert made.algorithm is not None
    assert (made.algorithm.tasks_per_iteration, made.algorithm.group_size) == (tasks, of_group)
    assert made.algorithm.iterations == 1
    assert made.data is not None
    assert made.data.val is None


def test_live_rollouts_alone_can_not_be_rehearsed() -> None:
    loaded = _loaded()
    live = parse_recipe(
        {
            "name": "demo",
            "agent": "a:b",
            "live": {"min_rollouts": 4},
            "policies": {"policy": {"model": "m"}},
            "algorithm": {"iterations": 2, "tasks_per_iteration": 0, "group_size": 1},
            "optimiser": {"learning_rate": 0.1},
        }
    )
    with pytest.raises(ConfigError, match="live rollouts can't be rehearsed"):
        small(LoadedRecipe(recipe=live, path=loaded.path), Path("runs/x"))
