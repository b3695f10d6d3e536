"""Environments of third-party clients, with exact versions, kept below `.cache/clients/` between runs.

Invariant: an environment holds what its list of packages says, from the registry's wheels or archives alone: nothing is
compiled, and no install script runs.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from uv_tool import ROOT, uv

CACHE = ROOT / ".cache" / "clients"
INSTALL_SECONDS = 280


def python_environment(name: str, packages: Sequence[str]) -> Path:
    """The interpreter of the environment `name`, in which `packages` (requirements, or options of the installer) are."""
    folder = CACHE / name / ".venv"
    python = folder / "bin" / "python"
    if not _holds(folder.parent, packages):
        _checked(uv("venv", "--clear", "--quiet", "--python", sys.executable, str(folder)))
        _checked(
            uv(
                "pip",
                "install",
                "--quiet",
                "--no-config",
                "--only-binary=:all:",
                "--python",
                str(python),
                *packages,
            )
        )
        _note(folder.parent, packages)
    return python


def node_environment(name: str, packages: Sequence[str]) -> Path:
    """The folder `node_modules` of the environment `name`; its own `.bin` has the programs of `packages`."""
    folder = CACHE / name
    if not _holds(folder, packages):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        (folder / "package.json").write_text('{"private": true, "type": "module"}', "utf-8")
        quiet = ("--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error")
        command = ["npm", "install", "--save-exact", *quiet, *packages]
        _checked(
            subprocess.run(
                command, cwd=folder, timeout=INSTALL_SECONDS, capture_output=True, text=True, check=False
            )
        )  # fmt: skip
        _note(folder, packages)
    return folder / "node_modules"


def python_versions(python: Path) -> dict[str, str]:
    """Every package of an environment: its name -> its version."""
    listed = uv("pip", "list", "--format", "json", "--python", str(python))
    _checked(listed)
    return {one["name"]: one["version"] for one in json.loads(listed.stdout)}


def node_versions(modules: Path) -> dict[str, str]:
    """The same of a `node_modules`."""
    lock = json.loads((modules.parent / "package-lock.json").read_text("utf-8"))
    return {
        path.removeprefix("node_modules/"): one["version"]
        for path, one in lock["packages"].items()
        if path.count("node_modules/") == 1 and "version" in one
    }


def search_path(*folders: Path) -> str:
    """`PATH` with these folders in front."""
    return os.pathsep.join([*map(str, folders), os.environ["PATH"]])


def _holds(folder: Path, packages: Sequence[str]) -> bool:
    noted = folder / "packages.txt"
    return noted.is_file() and noted.read_text("utf-8").splitlines() == list(packages)


def _note(folder: Path, packages: Sequence[str]) -> None:
    """Written last: an environment that was not finished is made anew."""
    (folder / "packages.txt").write_text("\n".join(packages), "utf-8")


def _checked(done: subprocess.CompletedProcess[str]) -> None:
    if done.returncode != 0:
        raise RuntimeError(f"{done.args} failed:\n{done.stdout}{done.stderr}")
