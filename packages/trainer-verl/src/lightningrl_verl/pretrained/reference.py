"""What `policies.NAME.model` and `lightningrl model` may name, and where it lies; without torch.

    FOLDER                a Hugging Face folder
    FILE.gguf             a GGUF file
    package:NAME          the GGUF file in an installed or fetched Python distribution
    run:NAME[@ITERATION]  what a run has trained; NAME is its name in runs/, or its folder

Invariant: what `locate` returns is there; whether it can be used is found when it is prepared.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from lightningrl.cli.export import find_checkpoint
from lightningrl.cli.stored_run import find_run_folder, load_run_recipe
from lightningrl.errors import ConfigError
from lightningrl_verl.pretrained.packages import find_package

_RUN = re.compile(r"run:(?P<name>[^@]+)(?:@(?P<iteration>\d+))?")


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
            " A model may also be FILE.gguf, package:NAME or run:NAME[@ITERATION]"
        )
    return Source(reference, path, "Hugging Face folder")


def _of_run(reference: str, policy: str | None) -> Source:
    parts = _RUN.fullmatch(reference)
    if parts is None:
        raise ConfigError(f"{reference!r} is not of the form run:NAME or run:NAME@ITERATION")
    run = find_run_folder(parts["name"])
    asked = parts["iteration"]
    trained = [one for one in load_run_recipe(run).recipe.policies.values() if one.trainable]
    iteration, alias, path = find_checkpoint(
        run,
        iteration=None if asked is None else int(asked),
        policy=policy if len(trained) > 1 else None,
    )
    origin = f"policy {alias!r} of run {str(run)!r}, iteration {iteration}"
    # Ranks and engines have working directories of their own.
    return Source(reference, path.resolve(), origin)
