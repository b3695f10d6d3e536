"""Every recipe for a laptop can be trained: what it names is there, and its keys fit together."""

from __future__ import annotations

from pathlib import Path

import pytest

from lightningrl.recipe import load_recipe
from lightningrl_verl.start.preflight import check

RECIPES = Path(__file__).parents[1] / "recipes"


@pytest.mark.parametrize("name", ["laptop", "laptop-without-tool", "cpu"])
def test_a_laptops_recipe_can_be_trained(name: str) -> None:
    plan = check(load_recipe(RECIPES / f"{name}.yaml"))
    assert len(plan.splits.test) == 200
    assert {len(dialogues) for dialogues in plan.dialogues.values()} <= {498}  # type: ignore[arg-type]
