"""What other people's code may rely on, and what a new package of ours must bring."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from importlib.metadata import entry_points, packages_distributions
from pathlib import Path
from typing import Any

import pytest

import lightningrl
from lightningrl.capture.adapter import GROUP, Adapter

ROOT = Path(__file__).resolve().parent.parent
MEMBERS = sorted(path.parent for path in ROOT.glob("packages/*/pyproject.toml")) + sorted(
    path.parent for path in ROOT.glob("benchmarks/*/pyproject.toml")
)
HEAVY = ("torch", "ray", "vllm", "verl", "transformers")
FRAMEWORKS = ("autogen_core", "autogen_agentchat", "langchain_core", "langgraph", "agents")


def project(member: Path) -> dict[str, Any]:
    """The table `project` of a member's pyproject.toml."""
    return tomllib.loads((member / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def test_the_public_names_are_sorted_and_pinned() -> None:
    assert lightningrl.__all__ == sorted(lightningrl.__all__)
    assert lightningrl.__all__ == [
        "Reward", "bind", "environment", "feedback", "final_reward", "load_recipe", "record", "redact_texts",
        "replaying", "resource", "reward", "rollout", "state", "step",
    ]  # fmt: skip
    for name in lightningrl.__all__:
        assert callable(getattr(lightningrl, name))


def test_all_packages_have_one_version() -> None:
    assert {project(member)["version"] for member in MEMBERS} == {project(MEMBERS[0])["version"]}


def test_packages_pin_each_other_at_that_version() -> None:
    version = project(MEMBERS[0])["version"]
    for member in MEMBERS:
        ours = [one for one in project(member)["dependencies"] if one.startswith("lightningrl")]
        assert all(one.endswith(f"=={version}") for one in ours), f"{member.name}: {ours}"


@pytest.mark.parametrize("member", MEMBERS, ids=lambda member: member.name)
def test_every_package_is_typed_and_has_a_readme(member: Path) -> None:
    (package,) = (member / "src").glob("lightningrl*")
    assert (package / "py.typed").is_file()
    assert len((member / "README.md").read_text(encoding="utf-8").splitlines()) >= 10


@pytest.mark.parametrize("member", MEMBERS, ids=lambda member: member.name)
def test_every_package_carries_the_licence(member: Path) -> None:
    # A wheel or sdist holds only what lies in its package's folder.
    assert (member / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()


def test_every_registered_adapter_passes_the_contract_in_its_own_tests() -> None:
    found = {entry.name: entry for entry in entry_points(group=GROUP)}
    registered = {
        name: member
        for member in MEMBERS
        for name in project(member).get("entry-points", {}).get(GROUP, {})
    }
    assert registered
    assert registered.keys() <= found.keys()
    for name, member in registered.items():
        adapter = found[name].load()
        assert isinstance(adapter(), Adapter)
        assert member.name == f"adapter-{adapter.name}"
        contracts = [
            base
            for path in (member / "tests").glob("test_*.py")
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(node, ast.ClassDef) and adapter.__name__ in path.read_text()
            for base in node.bases
            if isinstance(base, ast.Name) and base.id == "AdapterContract"
        ]
        assert contracts, f"{member.name}: no test class derives from AdapterContract"


def test_an_adapters_package_asks_for_the_versions_that_the_adapter_works_with() -> None:
    for entry in entry_points(group=GROUP):
        adapter: type[Adapter] = entry.load()
        first, last = adapter.versions
        wanted = f"{adapter.framework}>={first},<{last}"
        assert wanted in project(ROOT / "packages" / f"adapter-{adapter.name}")["dependencies"]


def test_an_adapter_is_called_for_by_modules_that_its_package_asks_for() -> None:
    """Else every import of them would be taken for one of a stranger's module of that name."""
    for entry in entry_points(group=GROUP):
        assert entry.dist is not None
        required = {re.split(r"[<>=]", one)[0] for one in entry.dist.requires or []}
        assert required & set(packages_distributions()[entry.name])


@pytest.mark.parametrize(
    ("imported", "absent"),
    [
        ("lightningrl", (*HEAVY, *FRAMEWORKS, "numpy", "aiohttp", "apsw")),
        ("lightningrl.cli, lightningrl.server, lightningrl.runner.process", (*HEAVY, *FRAMEWORKS)),
        (
            "lightningrl.credit, lightningrl.experience.trajectory, lightningrl.traces",
            (*HEAVY, *FRAMEWORKS),
        ),
        ("lightningrl_agent_framework", HEAVY),
        ("lightningrl_autogen", HEAVY),
        ("lightningrl_langchain", (*HEAVY, "langchain", "langgraph", "langchain_openai", "openai")),
        ("lightningrl_openai_agents", HEAVY),
        ("lightningrl_bench_math.agent", (*HEAVY, "lightningrl", "lightningrl_autogen")),
    ],
)
def test_importing_loads_nothing_that_is_not_needed(imported: str, absent: tuple[str, ...]) -> None:
    program = f"import sys, {imported}; print(*sorted(set(sys.modules) & set({absent!r})))"
    done = subprocess.run(
        [sys.executable, "-c", program], timeout=60, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == []


def test_the_trainers_checks_need_no_torch() -> None:
    """`lightningrl train` refuses a wrong recipe before it loads what takes seconds."""
    program = "import sys, lightningrl_verl.cli; print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], timeout=60, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"
