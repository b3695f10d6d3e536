"""The examples that train a third-party agent: `lightningrl try` of each passes with the real program, as its README says."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from client_environments import node_environment, python_environment, search_path
from client_scripts import SCRIPTS
from uv_tool import ROOT

from lightningrl.recipe import load_recipe
from lightningrl_testkit.model_server import ModelServer

EXAMPLES = ROOT / "examples"
RECIPES = {
    "ai-sdk/anthropic.yaml": "agent",
    "ai-sdk/openai.yaml": "agent",
    "codex/recipe.yaml": "shell_agent",
    "crewai/recipe.yaml": "agent",
    "llama-index/recipe.yaml": "agent",
    "mini-swe-agent/recipe.yaml": "shell_agent",
    "pydantic-ai/recipe.yaml": "agent",
    "smolagents/recipe.yaml": "code_agent",
}
"""Recipe -> what the model says."""


@pytest.mark.parametrize("recipe", RECIPES)
def test_its_recipe_can_be_read(recipe: str) -> None:
    assert load_recipe(EXAMPLES / recipe, ()).recipe.data is not None


def test_examples_that_can_be_copied_alone_have_the_same_tasks() -> None:
    assert len({path.read_text("utf-8") for path in EXAMPLES.glob("*/sums.py")}) == 1


@pytest.mark.clients
@pytest.mark.timeout(600)
@pytest.mark.parametrize("recipe", RECIPES)
def test_its_agent_is_wired_up(tmp_path: Path, recipe: str) -> None:
    folder = tmp_path / "example"
    shutil.copytree((EXAMPLES / recipe).parent, folder, ignore=shutil.ignore_patterns("node_*"))
    python, path = _installed(f"example-{Path(recipe).parent}", folder)
    command = [str(python), "-m", "lightningrl.cli", "try", Path(recipe).name, "--json"]
    with ModelServer(SCRIPTS[RECIPES[recipe]]) as model:
        done = subprocess.run(
            [*command, "--policy", model.url],
            cwd=folder,
            env={
                "PATH": path,
                "HOME": str(tmp_path),
                "LANG": "C.UTF-8",
                # A container, such as that of continuous integration, may forbid another inside it.
                "CODEX_SANDBOX": "danger-full-access",
            },
            timeout=500,
            capture_output=True,
            text=True,
            check=False,
        )
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    seen = json.loads(done.stdout.splitlines()[-1])
    assert (seen["rewarded"], seen["joined"]) == (4, 4), said
    assert seen["untrainable"] == {}
    assert seen["trainable"] == model.calls
    assert seen["trainable"] >= 8, "a call for the tool and one for the answer, of four rollouts"


def _installed(name: str, folder: Path) -> tuple[Path, str]:
    """The interpreter that has `lightningrl`, and a `PATH` on which the example's own programs are."""
    packages = folder / "package.json"
    if packages.is_file():
        if shutil.which("npm") is None:
            pytest.skip("npm is needed")
        wanted = json.loads(packages.read_text("utf-8"))["dependencies"]
        modules = node_environment(name, [f"{one}@{wanted[one]}" for one in sorted(wanted)])
        (folder / "node_modules").symlink_to(modules)
        return Path(sys.executable), search_path(modules / ".bin")
    requirements = (folder / "requirements.txt").read_text("utf-8").split()
    core = ("--no-binary=lightningrl", "--editable", str(ROOT / "packages" / "core"))
    python = python_environment(name, [*requirements, *core])
    return python, search_path(python.parent)
