"""The guide works: the smallest adapter, copied and renamed as it says, passes the contract."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from own_pytest import LIGHT

from lightningrl_testkit.adapter import claims

ROOT = Path(__file__).resolve().parent.parent
GUIDE = ROOT / "docs" / "how-to" / "add-an-adapter.md"
MOST_LINES = 200
"""Of the adapter that the guide copies: what a newcomer reads first stays short."""
SETTINGS = "[pytest]\nasyncio_mode = auto\nasyncio_default_fixture_loop_scope = function\n"


def renames() -> dict[str, str]:
    """The guide's table: what is replaced by what."""
    rows = re.findall(r"^\| `([\w-]+)` \| `([\w-]+)` \|$", GUIDE.read_text(), re.MULTILINE)
    assert len(rows) == 3
    return dict(rows)


def copy_adapter(folder: Path) -> Path:
    """Step 1 of the guide."""
    source = re.search(r"Copy `(packages/[\w-]+)`", GUIDE.read_text())
    assert source is not None
    copied = folder / "adapter-mine"
    shutil.copytree(ROOT / source[1], copied, ignore=shutil.ignore_patterns("__pycache__"))
    for old, new in renames().items():
        for path in sorted(copied.rglob("*"), reverse=True):
            if path.is_file():
                path.write_text(path.read_text().replace(old, new))
            if old in path.name:
                path.rename(path.with_name(path.name.replace(old, new)))
    return copied


def run_its_tests(copied: Path, *options: str) -> str:
    (copied / "pytest.ini").write_text(SETTINGS)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", *LIGHT, *options, "tests"],
        cwd=copied,
        env={**os.environ, "PYTHONPATH": str(copied / "src")},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def test_what_the_guide_copies_is_short(tmp_path: Path) -> None:
    sources = (copy_adapter(tmp_path) / "src").rglob("*.py")
    assert sum(len(path.read_text().splitlines()) for path in sources) <= MOST_LINES


def test_the_copy_of_the_guide_passes_the_contract(tmp_path: Path) -> None:
    copied = copy_adapter(tmp_path)
    left = [path for path in copied.rglob("*.py") if "agent_framework_contract" in path.read_text()]
    assert left == []
    assert (copied / "src" / "lightningrl_mine" / "adapter.py").is_file()
    shown = run_its_tests(copied, "-k", "one_joined_step or streaming_gives or as_it_was")
    assert "3 passed" in shown


@pytest.mark.long
def test_the_copy_passes_every_claim(tmp_path: Path) -> None:
    shown = run_its_tests(copy_adapter(tmp_path))
    passed, gaps = re.findall(r"(\d+) (?:passed|xfailed)", shown)
    assert int(passed) + int(gaps) == len(claims())
