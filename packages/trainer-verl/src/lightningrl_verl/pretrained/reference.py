"""What `policies.NAME.model` and `lightningrl model` may name, and where it lies; without torch.

    FOLDER                a Hugging Face folder
    FILE.gguf             a GGUF file
    package:NAME          the GGUF file in an installed or fetched Python distribution
    run:NAME[@ITERATION]  what a run has trained; NAME is its name in runs/, or its folder. ITERATION is a number (0: what
                          the run began with, after a warm start), or `best`, as validation scored it

Invariant: what `locate` returns is there; whether it can be used is found when it is prepared.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from lightningrl.cli.export import find_checkpoint
from lightningrl.cli.stored_run import (
    BEGAN_WITH,
    find_run_folder,
    load_run_recipe,
    read_origin,
)
from lightningrl.errors import ConfigError
from lightningrl.metrics import best_iteration, read_metrics
from lightningrl_verl.pretrained.packages import find_package

_RUN = re.compile(r"run:(?P<name>[^@]+)(?:@(?P<iteration>\d+|best))?")


@dataclass(frozen=True, slots=True)
class Source:
    """A model as it lies on this machine."""

    reference: str
    """As given."""
    path: Path
    """A Hugging Face folder, or a GGUF file; absolute."""
    origin: str
    """What it is, for people."""
    licence: str | None = None
    """As a distribution's metadata say. `None`: the model itself may."""

    @property
    def is_gguf(self) -> bool:
        """Whether it must be converted."""
        return self.path.is_file()


def locate(reference: str, *, folder: Path, policy: str | None = None) -> Source:
    """Find what a reference names.

    Args:
        reference: see the module.
        folder: what paths are relative to.
        policy: alias; it counts where a run has trained several policies.

    Raises:
        ConfigError: it has no such form, isn't there, or holds no model.
    """
    kind, separator, name = reference.partition(":")
    if separator and kind == "package":
        found = find_package(name)
        return Source(
            reference, found.file, f"distribution {found.name} {found.version}", found.licence
        )
    if separator and kind == "run":
        return _of_run(reference, policy)
    path = (folder / reference).resolve()
    if path.suffix == ".gguf":
        if not path.is_file():
            raise ConfigError(f"{reference!r}: there is no GGUF file {str(path)!r}")
        return Source(reference, path, "GGUF file")
    if not (path / "config.json").is_file():
        raise ConfigError(
            f"{reference!r} is no Hugging Face model folder: {str(path)!r} has no config.json."
            " A model may also be FILE.gguf, package:NAME or run:NAME[@ITERATION]; none is downloaded by a hub's name, but"
            " `hf download NAME --local-dir FOLDER` makes a folder"
        )
    return Source(reference, path, "Hugging Face folder")


def _of_run(reference: str, policy: str | None) -> Source:
    parts = _RUN.fullmatch(reference)
    if parts is None:
        raise ConfigError(
            f"{reference!r} is not of the form run:NAME, run:NAME@ITERATION or run:NAME@best"
        )
    run = find_run_folder(parts["name"])
    asked = parts["iteration"]
    if asked is not None and asked != "best" and int(asked) == 0:
        return _began_with(reference, run, policy)
    if asked == "best":
        asked = _best(run)
    trained = [one for one in load_run_recipe(run).recipe.policies.values() if one.trainable]
    iteration, alias, path = find_checkpoint(
        run,
        iteration=None if asked is None else int(asked),
        policy=policy if len(trained) > 1 else None,
    )
    origin = f"policy {alias!r} of run {str(run)!r}, iteration {iteration}"
    # Ranks and engines have working directories of their own.
    return Source(reference, path.resolve(), origin)


def _best(run: Path) -> int:
    found = best_iteration(read_metrics(run / "metrics.jsonl"))
    if found is None:
        raise ConfigError(
            f"run {str(run)!r} has no best iteration: validation scored none (data.val); name one by @ITERATION"
        )
    return found


def _began_with(reference: str, run: Path, policy: str | None) -> Source:
    """What a run started from, which lies where it was found or made."""
    known = read_origin(run).get(BEGAN_WITH, {})
    if policy not in known and len(known) != 1:
        raise ConfigError(
            f"run {str(run)!r} does not say what it began with; those that do: {list(known)}"
        )
    alias = policy if policy in known else next(iter(known))
    path = Path(known[alias])
    if not (path / "config.json").is_file():
        raise ConfigError(
            f"run {str(run)!r} began with the model in {str(path)!r}, which is no longer there"
        )
    return Source(reference, path, f"what policy {alias!r} of run {str(run)!r} began with")
