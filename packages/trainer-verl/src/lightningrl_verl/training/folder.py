"""A run's folder: what is where, one writer at a time, and never two recipes in one run.

recipe.yaml     the resolved recipe
run.json        commit, versions, when and from which file it was started
metrics.jsonl   one line per iteration
curve.png       train and validation reward
store.db        the LightningStore
drift.json      what did not merge, and why
checkpoints/    iteration-NNNNNN, each whole or absent
logs/           what the server and the runners print
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import platform
import subprocess
from collections.abc import Generator
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import yaml

from lightningrl.errors import ConfigError, StoreLocked
from lightningrl.recipe import LoadedRecipe, changed_keys, dump_recipe, parse_recipe


@dataclass(frozen=True)
class RunFolder:
    """The paths of one run."""

    path: Path

    @property
    def recipe(self) -> Path:
        """The resolved recipe."""
        return self.path / "recipe.yaml"

    @property
    def info(self) -> Path:
        """Where the run came from."""
        return self.path / "run.json"

    @property
    def metrics(self) -> Path:
        """One line per iteration."""
        return self.path / "metrics.jsonl"

    @property
    def curve(self) -> Path:
        """The reward curve."""
        return self.path / "curve.png"

    @property
    def store(self) -> Path:
        """The LightningStore."""
        return self.path / "store.db"

    @property
    def drift(self) -> Path:
        """What did not merge."""
        return self.path / "drift.json"

    @property
    def checkpoints(self) -> Path:
        """One folder per kept iteration."""
        return self.path / "checkpoints"

    @property
    def logs(self) -> Path:
        """Output of the child processes."""
        return self.path / "logs"

    @contextlib.contextmanager
    def locked(self) -> Generator[None]:
        """Hold the folder for this process.

        Raises:
            StoreLocked: another trainer works in it; the message has its process id.
        """
        self.logs.mkdir(parents=True, exist_ok=True)
        with (self.path / ".lock").open("a+") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                lock.seek(0)
                raise StoreLocked(
                    f"process {lock.read().strip() or '?'} is training in {str(self.path)!r};"
                    " wait for it, or give this run another 'name'"
                ) from None
            lock.truncate(0)
            lock.write(str(os.getpid()))
            lock.flush()
            yield

    def adopt(self, loaded: LoadedRecipe) -> None:
        """Write the recipe into a new folder, or check it against the one that is there.

        Raises:
            ConfigError: the folder belongs to a run of another recipe; the message names the keys.
        """
        if not self.recipe.exists():
            _write(self.info, json.dumps(_origin(loaded), indent=2) + "\n")
            _write(self.recipe, dump_recipe(loaded.recipe))
            return
        there = parse_recipe(
            yaml.safe_load(self.recipe.read_text(encoding="utf-8")), where=str(self.recipe)
        )
        changed = changed_keys(there, loaded.recipe)
        if changed:
            raise ConfigError(
                f"{str(self.path)!r} holds a run of another recipe: {', '.join(changed)} differ."
                " Undo the change to resume it, or give the new run another 'name'"
            )

    def check_base(self, model: Path) -> None:
        """Remember the weights that the run starts from, or check that they are still the same.

        Raises:
            ConfigError: the folder's run started from other weights, which would be a second set
                under version 0.
        """
        origin = json.loads(self.info.read_text(encoding="utf-8"))
        digest = _weights_digest(model)
        if origin.setdefault("base_weights", digest) != digest:
            raise ConfigError(
                f"{str(self.path)!r} holds a run that started from other weights than those in"
                f" {str(model)!r}; bring those back, or give the new run another 'name'"
            )
        _write(self.info, json.dumps(origin, indent=2) + "\n")


def _weights_digest(model: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(model.glob("*.safetensors")):
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _write(path: Path, text: str) -> None:
    """Replace a file whole."""
    draft = path.with_name(f".{path.name}.new")
    draft.write_text(text, encoding="utf-8")
    draft.replace(path)


def _origin(loaded: LoadedRecipe) -> dict[str, object]:
    return {
        "name": loaded.recipe.name,
        "recipe_path": str(loaded.path),
        "commit": _commit(loaded.folder),
        "started_at": datetime.now(UTC).isoformat(),
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "versions": {
            name: version(name) for name in ("lightningrl", "verl", "torch", "transformers")
        },
    }


def _commit(folder: Path) -> str | None:
    """The git commit of the recipe's repository, with `+changes` if files differ from it."""
    try:
        head = _git(folder, "rev-parse", "HEAD")
        changed = _git(folder, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.CalledProcessError):
        return None
    return head + ("+changes" if changed else "")


def _git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()
