"""The guide's credit assigner works as a module, and by its entry point once its package is installed."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "how-to" / "add-a-credit-assigner.md"
_LOCAL_UV = ROOT / ".uv" / "bin" / "uv"
UV = shutil.which("uv") or str(_LOCAL_UV)

# two members with rewards 1 and 0: the winner's 0.5 over two calls, the failure's -0.5 times 2 at the last
_PROGRAM = """
from lightningrl.credit import assign, find_assigner
from lightningrl_testkit.traces import Did, group, trace
winner, loser = trace(1.0, Did("a"), Did("b")), trace(0.0, Did("a"), Did("b"))
credit = assign(find_assigner({name!r}, {{"push": 2.0}}), [group(winner, loser)], {{"push": 2.0}})
assert credit == [[[0.25, 0.25], [0.0, -1.0]]], credit
assert credit.metrics == {{"winners": 1}}, credit.metrics
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """The guide's files in a folder."""
    text = PAGE.read_text(encoding="utf-8")
    folder = tmp_path / "project"
    folder.mkdir()
    for name, content in re.findall(r"<!-- file: (\S+) -->\n```\w+\n(.*?)^```$", text, re.M | re.S):
        (folder / name).write_text(content, encoding="utf-8")
    return folder


def run(program: str, folder: Path) -> None:
    paths = [str(folder), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environment, timeout=120, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_the_function_is_at_most_20_lines() -> None:
    text = PAGE.read_text(encoding="utf-8")
    (code,) = re.findall(r"<!-- file: my_credit.py -->\n```python\n(.*?)^```$", text, re.M | re.S)
    assert len([line for line in code.splitlines() if line.strip()]) <= 20


def test_it_is_found_as_a_module(project: Path) -> None:
    run(_PROGRAM.format(name="my_credit:sharing"), project)


@pytest.mark.skipif(not Path(UV).is_file(), reason="uv, which `make` installs, is not here")
def test_it_is_found_by_its_entry_point_once_installed(project: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    subprocess.run(
        [UV, "pip", "install", "--quiet", "--no-deps", "--target", str(site), str(project)],
        timeout=200, check=True, capture_output=True,
    )  # fmt: skip
    run(_PROGRAM.format(name="sharing"), site)
