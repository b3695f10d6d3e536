"""The uv that tests run: the one on the path, else the one that `make` installs."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
_UV = shutil.which("uv") or str(ROOT / ".uv" / "bin" / "uv")

needs_uv = pytest.mark.skipif(
    not Path(_UV).is_file(), reason="uv, which `make` installs, is neither here nor on the path"
)

UV_RUN = (_UV, "run", "--no-sync", "--project", str(ROOT)) if Path(_UV).is_file() else ()
"""Runs a command in the workspace's environment, in whatever folder; nothing where there is no uv."""


def uv(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run uv to its end."""
    environment = {name: text for name, text in os.environ.items() if name != "VIRTUAL_ENV"}
    return subprocess.run(
        [_UV, *arguments],
        cwd=ROOT, env=environment, timeout=280, capture_output=True, text=True, check=False,
    )  # fmt: skip
