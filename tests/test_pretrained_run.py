"""A run from a GGUF file: converted, trained with the Hermes template, exported, and the base of a second run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml
from tiny_gguf import TinyGguf
from user_project import Project


def _recipe(project: Project, **policy: Any) -> Path:
    path = project.recipe(
        algorithm={"iterations": 1, "tasks_per_iteration": 2, "group_size": 4},
        step_rewards=[],
        policies={"policy": {"tool_parser": "hermes", "max_model_len": 512, **policy}},
    )
    recipe = yaml.safe_load(path.read_text(encoding="utf-8"))
    recipe["data"] = {"train": recipe["data"]["train"]}
    path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    return path


def test_a_gguf_file_is_trained_exported_and_trained_again(project: Project) -> None:
    TinyGguf(quantised=True).write(project.folder / "tiny.gguf")
    done = project.train(str(_recipe(project, model="tiny.gguf", chat_template="hermes")))
    assert done.returncode == 0, done.stdout + done.stderr
    told = next(line for line in done.stdout.splitlines() if line.startswith("model 'tiny.gguf'"))
    for part in (
        "licence mit",
        "sha256",
        "not bit for bit the published model",
        "chat template 'hermes'",
    ):
        assert part in told, part

    model = project.run / "checkpoints" / "iteration-000001" / "huggingface"
    assert "<tool_response>" in (model / "chat_template.jinja").read_text(encoding="utf-8")
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    assert config["eos_token_id"] == 2
    assert project.cli("export", str(project.run), "--out", "out").returncode == 0
    card = (project.folder / "out" / "README.md").read_text(encoding="utf-8")
    assert card.startswith("---\nlicense: mit\n")
    assert "not bit for bit the published model" in card

    shown = project.cli("model", "convert", "run:quick")
    assert shown.stdout.strip() == "runs/quick/checkpoints/iteration-000001/huggingface"
