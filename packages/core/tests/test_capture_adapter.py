"""Adapters are found by what their packages announce; one that can't be used is refused by its name."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from lightningrl.capture.adapter import check_version
from lightningrl.errors import ConfigError

FIND = """
from lightningrl.capture.adapters import find_adapters
from lightningrl.errors import ConfigError
try:
    find_adapters()
except ConfigError as error:
    print(error)
"""


def said_of(entry: str, folder: Path) -> str:
    """What finding adapters says where an installed package announces `entry`."""
    announced = folder / "mine-1.0.dist-info"
    announced.mkdir()
    (announced / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1.0\n")
    (announced / "entry_points.txt").write_text(f"[lightningrl.adapters]\naaa = {entry}\n")
    (folder / "mine.py").write_text("import no_such_framework\nclass Mine: ...\n")
    (folder / "other.py").write_text("class Other: ...\n")
    done = subprocess.run(
        [sys.executable, "-c", FIND], cwd=folder, capture_output=True, text=True, check=True
    )
    return done.stdout


def test_an_adapter_without_its_framework_says_what_is_missing(tmp_path: Path) -> None:
    said = said_of("mine:Mine", tmp_path)
    assert "the adapter 'aaa' (mine:Mine) can't be imported" in said
    assert "no_such_framework" in said
    assert "install its framework" in said


def test_what_is_no_adapter_is_refused_by_its_entry(tmp_path: Path) -> None:
    said = said_of("other:Other", tmp_path)
    assert said == "the entry 'aaa' (other:Other) of lightningrl.adapters is no adapter\n"


def adapter_of(first: str, last: str) -> Any:
    """An adapter of a framework that is certainly installed."""
    return type("Mine", (), {"name": "mine", "framework": "msgspec", "versions": (first, last)})


@pytest.mark.parametrize("first", ["0", "0.1.dev3", version("msgspec")])
def test_a_version_within_the_bounds_is_taken(first: str) -> None:
    check_version(adapter_of(first, "99"))


@pytest.mark.parametrize(
    ("first", "last"), [("98", "99"), ("0", "0.1"), ("0", version("msgspec")), ("99rc1", "100")]
)
def test_a_version_outside_the_bounds_is_refused_with_both(first: str, last: str) -> None:
    with pytest.raises(ConfigError) as refused:
        check_version(adapter_of(first, last))
    assert f"'mine' works with msgspec from {first} to below {last}" in str(refused.value)
    assert f"{version('msgspec')} is installed" in str(refused.value)
