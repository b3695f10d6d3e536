"""The quick start as its reader goes through it: both agents are trained by the page's commands.

Four random layers stand in for the model's thirty; its tokenizer and template are the real ones.
"""

from __future__ import annotations

import shlex
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from smollm2 import stand_in_of
from test_docs import blocks, commands_in
from user_project import CLI, Project

PAGE = Path("docs/quickstart.md")
ADDITION = Path(__file__).parents[1] / "examples" / "addition"
FILES = {"python": "addition_graph.py", "yaml": "laptop.yaml"}
SPREAD = """
def spread(task, output, trace):
    return float(len(output or "") % 2)
"""
"""Random layers never add: another reward, so that there is something to learn."""
FEW = (
    "reward=spread:spread", "algorithm.iterations=1", "algorithm.tasks_per_iteration=2",
    "algorithm.group_size=4", "data.val.limit=1", "data.test.limit=1", "sampling.train.max_tokens=8",
    "sampling.val.max_tokens=8",
)  # fmt: skip


def test_the_pages_files_are_those_of_the_example() -> None:
    shown = {block.language: block.text for block in blocks(PAGE) if block.language in FILES}
    for language, name in FILES.items():
        assert shown[language] == (ADDITION / name).read_text(encoding="utf-8"), name


@pytest.mark.parametrize("name", [pytest.param("addition", marks=pytest.mark.long), "graph"])
def test_an_agent_is_trained_by_the_pages_command(
    name: str, project: Project, pytestconfig: pytest.Config
) -> None:
    folder = project.folder / "examples" / "addition"
    shutil.copytree(ADDITION, folder, ignore=shutil.ignore_patterns("results"))
    (folder / "spread.py").write_text(SPREAD, encoding="utf-8")
    [changes] = [
        words[3:]
        for words in commands_in(PAGE)
        if words[1] == "train" and words[2:3] == ["examples/addition/laptop.yaml"]
        and ("name=graph" in words) == (name == "graph")
    ]  # fmt: skip
    model = f"policies.policy.model={shlex.quote(str(stand_in_of(pytestconfig)))}"
    done = project.program(CLI, "train", "examples/addition/laptop.yaml", *changes, *FEW, model)
    assert done.returncode == 0, done.stdout + done.stderr
    (before, after) = replace(project, name=name).metrics()
    assert 0 <= before["val/reward_sampled"] <= 1
    assert after["train/rollouts"] == 8
    assert 1 <= after["train/calls_per_rollout"] <= (1 if name == "addition" else 2)
    assert after["actor/grad_norm"] > 0
