"""The recipes: those for a laptop can be trained as they stand, that for a GPU is one that loads."""

from __future__ import annotations

from pathlib import Path

import pytest
from msgspec import structs

from lightningrl.recipe import load_recipe
from lightningrl_verl.start.preflight import check

RECIPES = Path(__file__).parents[1] / "recipes"


def test_the_laptops_recipe_can_be_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIGHTNINGRL_CACHE", str(tmp_path))
    plan = check(load_recipe(RECIPES / "laptop.yaml", ("data.train.args.count=20",)))
    assert len(plan.splits.test) == 200
    assert len({task["kind"] for _, task in plan.splits.test}) == 9
    dialogues = plan.dialogues["policy"]
    assert not isinstance(dialogues, Path)
    assert len(dialogues) > 600


def test_the_checkers_recipe_differs_in_who_is_trained_alone() -> None:
    plain, checker = (
        load_recipe(RECIPES / f"{name}.yaml", ()).recipe for name in ("laptop", "laptop-checker")
    )
    assert plain.policies["policy"].train_agents == ("writer", "rewriter")
    policy = structs.replace(plain.policies["policy"], train_agents=())
    assert structs.replace(plain, name=checker.name, policies={"policy": policy}) == checker


def test_the_gpus_recipe_is_in_the_published_setting() -> None:
    recipe = load_recipe(RECIPES / "gpu-1x80gb.yaml", ()).recipe
    assert recipe.algorithm is not None
    assert (recipe.algorithm.tasks_per_iteration, recipe.algorithm.group_size) == (32, 4)
    assert recipe.policies["policy"].train_agents == ("writer", "rewriter")
    assert "NOT YET RUN" in (RECIPES / "gpu-1x80gb.yaml").read_text(encoding="utf-8")
