"""What the release check calls wrong with files, metadata and changelog. The whole is `make release-check`."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parent.parent

METADATA = """\
Metadata-Version: 2.4
Name: lightningrl-ui
Version: 0.1.0
Summary: A page of runs.
License-Expression: MIT
License-File: LICENSE
Requires-Python: >=3.11
Requires-Dist: lightningrl==0.1.0
Requires-Dist: click>=8.1
Description-Content-Type: text/markdown

A page of [runs](https://example.org/runs).
"""


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "release_check", ROOT / "scripts" / "release_check.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["release_check"] = module  # its dataclasses look there for their types
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("right", "wrong", "said"),
    [
        ("", "", None),
        ("Expression: MIT", "Expression: Apache-2.0", "licence expression"),
        ("Expression: MIT", "Expression: Mine", "Mine"),
        ("License-File: LICENSE\n", "", "licence files"),
        ("Version: 0.1.0\nSum", "Version: 0.2.0\nSum", "version: '0.2.0', not '0.1.0'"),
        ("Requires-Python: >=3.11", "Requires-Python: >=3.12", "requires-python"),
        ("rl==0.1.0", "rl>=0.1.0", "needs lightningrl>=0.1.0, not ==0.1.0"),
        ("click>=8.1", "click", "needs click of any version"),
        ("Summary: A page of runs.\n", "", "no summary"),
        ("(https://example.org/runs)", "(../runs.md)", "'../runs.md'"),
        ("Summary", "Project-URL: Home, http://example.org\nSummary", "not https"),
        ("Version: 2.4", "Version: 9.9", "not a valid metadata version"),
    ],
)
def test_metadata(script: ModuleType, right: str, wrong: str, said: str | None) -> None:
    raw = METADATA.replace(right, wrong, 1).encode()
    found = script.metadata_problems(raw, "lightningrl-ui", "0.1.0", {"lightningrl"})
    if said is None:
        assert found == []
    else:
        [problem] = found
        assert said in problem


def test_contents(script: ModuleType) -> None:
    whole = ["lightningrl/py.typed", "lightningrl-0.1.0.dist-info/licenses/LICENSE"]
    assert script.content_problems(whole) == []
    assert script.content_problems(whole[:1]) == ["lacks LICENSE"]
    assert script.content_problems([*whole, "x-1/tests/test_a.py"]) == ["holds x-1/tests/test_a.py"]
    assert script.content_problems([*whole, "a/b.pyc"]) == ["holds a/b.pyc"]


def test_sizes(script: ModuleType) -> None:
    assert script.size_problems("lightningrl-autogen", 40 * 1024) == []
    assert script.size_problems("lightningrl-autogen", 41 * 1024) == ["takes 41 KiB, more than 40"]


def test_the_changelog_has_the_version(script: ModuleType) -> None:
    assert script.changelog_problems("# C\n\n## 0.1.0 (unreleased)\n\n- New.\n", "0.1.0") == []
    assert "nothing below" in script.changelog_problems("## 0.1.0\n\n## 0.0.9\n- x\n", "0.1.0")[0]
    assert "no heading" in script.changelog_problems("## 0.1.0\n- x\n", "0.1.1")[0]


def test_every_package_has_a_trial(script: ModuleType) -> None:
    folders = {path.parent.name for path in ROOT.glob("packages/*/pyproject.toml")}
    assert len(script.TRIALS) == len(folders)
