"""The recipes: those for a laptop can be trained as they stand, and that for a GPU could start."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from msgspec import structs

from lightningrl.recipe import load_recipe
from lightningrl_verl.start.preflight import check

RECIPES = Path(__file__).parents[1] / "recipes"


def test_the_laptops_recipe_can_be_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIGHTNINGRL_CACHE", str(tmp_path))
    fewer = [f"data.{split}.args.count=9" for split in ("train", "val", "test")]
    fewer.append("policies.policy.warm_start.args.count=9")
    plan = check(load_recipe(RECIPES / "laptop.yaml", fewer))
    assert len({task["kind"] for _, task in plan.splits.test}) == 9
    dialogues = plan.dialogues["policy"]
    assert not isinstance(dialogues, Path)
    assert 18 <= len(dialogues) <= 27


def test_the_checkers_recipe_differs_in_who_is_trained_alone() -> None:
    plain, checker = (
        load_recipe(RECIPES / f"{name}.yaml", ()).recipe for name in ("laptop", "laptop-checker")
    )
    assert plain.policies["policy"].train_agents == ("writer", "rewriter")
    policy = structs.replace(plain.policies["policy"], train_agents=())
    assert structs.replace(plain, name=checker.name, policies={"policy": policy}) == checker


def test_the_gpus_recipe_is_in_the_published_setting_and_could_start(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text('{"model_type": "qwen2"}', encoding="utf-8")
    (tmp_path / "pets").mkdir()
    with closing(sqlite3.connect(tmp_path / "pets" / "pets.sqlite")) as connection:
        connection.execute("CREATE TABLE dog (id INTEGER)")
    question = {"db_id": "pets", "question": "How many?", "query": "SELECT COUNT(*) FROM dog"}
    (tmp_path / "all.json").write_text(json.dumps([question] * 600), encoding="utf-8")
    given = [f"policies.policy.model={tmp_path / 'model'}"]
    for split in ("train", "val"):
        given += [
            f"data.{split}.args.questions={tmp_path / 'all.json'}",
            f"data.{split}.args.databases={tmp_path}",
        ]
    plan = check(load_recipe(RECIPES / "gpu-1x80gb.yaml", given))
    assert (len(plan.splits.train), len(plan.splits.val)) == (600, 500)
    assert plan.recipe.algorithm is not None
    assert (plan.recipe.algorithm.tasks_per_iteration, plan.recipe.algorithm.group_size) == (32, 4)
    assert plan.recipe.policies["policy"].train_agents == ("writer", "rewriter")
    assert "NOT YET RUN" in (RECIPES / "gpu-1x80gb.yaml").read_text(encoding="utf-8")
