"""The recipes: that for a laptop can be trained as it stands, and that for a GPU could start."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lightningrl.recipe import load_recipe
from lightningrl_verl.start.preflight import check

RECIPES = Path(__file__).parents[1] / "recipes"
SAMPLE = Path(__file__).parent / "samples" / "musique.jsonl"


def test_the_laptops_recipe_can_be_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIGHTNINGRL_CACHE", str(tmp_path))
    plan = check(load_recipe(RECIPES / "laptop.yaml", ()))
    assert [len(rows) for rows in (plan.splits.train, plan.splits.val, plan.splits.test)] == [1000, 64, 200]  # fmt: skip
    dialogues = plan.dialogues["policy"]
    assert not isinstance(dialogues, Path)
    assert len(dialogues) == 498


def test_the_gpus_recipe_is_in_the_published_setting_and_could_start(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "qwen2"}', encoding="utf-8")
    question = json.loads(SAMPLE.read_text(encoding="utf-8").splitlines()[0])
    lines = [json.dumps({**question, "id": f"2hop__{number}"}) for number in range(200)]
    (tmp_path / "all.jsonl").write_text("\n".join(lines), encoding="utf-8")
    given = [f"policies.policy.model={tmp_path}"]
    given += [f"data.{split}.args.path={tmp_path / 'all.jsonl'}" for split in ("train", "val")]
    plan = check(load_recipe(RECIPES / "gpu-1x80gb.yaml", given))
    assert (len(plan.splits.train), len(plan.splits.val)) == (200, 128)
    assert plan.recipe.algorithm is not None
    assert (plan.recipe.algorithm.tasks_per_iteration, plan.recipe.algorithm.group_size) == (32, 4)
    assert "NOT YET RUN" in (RECIPES / "gpu-1x80gb.yaml").read_text(encoding="utf-8")
