"""Peers in throw-away environments: made once in a folder that git ignores, then found there.

A peer is installed as it was on the day that its pins were good. One that can't be installed is a row
of the results that says so, not a failure of the benchmark.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

CACHE = Path(__file__).parents[1] / ".cache"


class NoPeer(Exception):
    """The peer can't be installed here; the message says why."""


@dataclass(frozen=True)
class Peer:
    """A distribution and how to install it."""

    name: str
    """As it stands in the results."""
    requirement: str
    uploaded_before: str | None = None
    """Only what was uploaded before this date (`YYYY-MM-DD`) is installed."""
    any_python: bool = False
    """Install though the distribution asks for a newer Python than this one."""

    def environment(self) -> Path:
        """The folder of its environment, made where there is none.

        Raises:
            NoPeer: the installation failed.
        """
        folder = CACHE / self.name.replace(" ", "-")
        done = folder / "installed"
        if not done.exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.parent.mkdir(parents=True, exist_ok=True)
            _run([sys.executable, "-m", "venv", str(folder)])
            self._install(folder)
            done.touch()
        return folder

    def _install(self, folder: Path) -> None:
        python = folder / "bin" / "python"
        pip = [str(python), "-m", "pip", "--quiet", "--disable-pip-version-check", "install"]
        if self.uploaded_before is not None:
            _run([*pip, "--upgrade", "pip>=26"])  # the first with --uploaded-prior-to
            pip += ["--uploaded-prior-to", self.uploaded_before]
        if self.any_python:
            pip.append("--ignore-requires-python")
        _run([*pip, self.requirement])


def _run(command: list[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=900)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NoPeer(f"{command[0]} failed: {error}") from error
    if done.returncode != 0:
        lines = (done.stderr or done.stdout).strip().splitlines() or ["no output"]
        raise NoPeer(f"installation failed: {lines[-1]}")
