"""What users get: the wheels hold all that is needed, and run with what they declare alone."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from zipfile import ZipFile

import pytest
from uv_tool import ROOT, needs_uv, uv

pytestmark = needs_uv


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Import name -> wheel, of every package."""
    folder = tmp_path_factory.mktemp("wheels")
    done = uv("build", "--all-packages", "--wheel", "--quiet", "--out-dir", str(folder))
    assert done.returncode == 0, done.stderr
    return {path.name.split("-", 1)[0]: path for path in folder.glob("*.whl")}


def test_every_package_builds_a_typed_wheel(wheels: dict[str, Path]) -> None:
    assert wheels.keys() == {
        "lightningrl", "lightningrl_agent_framework", "lightningrl_autogen", "lightningrl_bench_math",
        "lightningrl_bench_rag", "lightningrl_bench_sql", "lightningrl_langchain", "lightningrl_openai_agents",
        "lightningrl_testkit", "lightningrl_ui", "lightningrl_verl",
    }  # fmt: skip
    for name, wheel in wheels.items():
        assert f"{name}/py.typed" in ZipFile(wheel).namelist()


@pytest.mark.parametrize("member", ["packages/core", "packages/adapter-autogen", "packages/ui"])
def test_a_wheel_holds_every_file_of_its_source(wheels: dict[str, Path], member: str) -> None:
    (package,) = (ROOT / member / "src").glob("lightningrl*")
    source = {
        str(path.relative_to(package.parent))
        for path in package.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert source <= set(ZipFile(wheels[package.name]).namelist())
    assert any(name.endswith(".sql") for name in source) == (package.name == "lightningrl")


_CORE = """
import asyncio, json, pathlib, subprocess, tempfile
from lightningrl.store import open_store
async def runs():
    with tempfile.TemporaryDirectory() as folder:
        store = open_store(pathlib.Path(folder) / "store.db")
        found = await store.runs()
        await store.close()
    return found
def command(*arguments):
    done = subprocess.run(["lightningrl", *arguments], capture_output=True, text=True)
    return [done.returncode, done.stdout, done.stderr]
print(json.dumps([asyncio.run(runs()), command("--help"), command("train", "recipe.yaml")]))
"""


def alone(package: str, *command: str) -> subprocess.CompletedProcess[str]:
    """Run a command where a package's wheel is installed with what it declares, as locked."""
    return uv(
        "run", "--isolated", "--frozen", "--exact", "--no-dev", "--no-editable", "--quiet",
        "--package", package, *command,
    )  # fmt: skip


_ADAPTERS = """
from lightningrl.capture.adapters import find_adapters
print([one.name for one in find_adapters()])
"""
# Python compiles a whole framework anew in each environment.
_BIG = {"langchain", "openai-agents"}


@pytest.mark.parametrize(
    ("package", "program", "printed"),
    [
        *(
            pytest.param(
                f"lightningrl-{name}",
                _ADAPTERS,
                f"['{name}']",
                marks=[pytest.mark.long] if name in _BIG else [],
                id=name,
            )
            for name in ("agent-framework", "autogen", "langchain", "openai-agents")
        ),
        (
            "lightningrl-ui",
            "from lightningrl_ui.app import make_app; from lightningrl_ui.sources import Sources;"
            "make_app(Sources(())); print('whole')",
            "whole",
        ),
        (
            "lightningrl-testkit",
            "import lightningrl_testkit.adapter, lightningrl_testkit.store; print('whole')",
            "whole",
        ),
    ],
)
def test_a_package_runs_with_what_it_declares_alone(
    package: str, program: str, printed: str
) -> None:
    done = alone(package, "python", "-c", program)
    assert done.stdout.strip() == printed, done.stderr


def test_core_alone_keeps_runs_has_its_commands_and_says_where_training_comes_from() -> None:
    done = alone("lightningrl", "python", "-c", _CORE)
    assert done.returncode == 0, done.stderr
    runs, (_, shown, _), (refused, _, said) = json.loads(done.stdout)
    assert runs == []
    commands = re.findall(r"^  (\w+)  ", shown.split("Commands:")[1], re.MULTILINE)
    told = "credit db delete doctor drift export fork import judge plot rescore retry runner serve show"
    assert commands == [*told.split(), "try"]
    assert refused == 2
    assert "pip install lightningrl-verl" in said
