"""Checkpoints: each whole or absent, the newest whole one is where a run goes on.

Invariant: a folder `iteration-NNNNNN` is complete. It is written under a temporary name, every file
is synced, then it is renamed; only after that does the ledger commit the iteration.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from lightningrl.errors import RunError
from lightningrl.machine.durable import publish

_NAME = re.compile(r"iteration-(\d{6})")
_STATE = "state.json"


class State(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a checkpoint says beside the weights."""

    iteration: int
    """The last iteration that was trained."""
    versions: dict[str, int]
    """Alias of each trained policy -> version of its weights."""
    credit: dict[str, Any]
    """State of the credit assigner, for the next iteration."""
    metrics: dict[str, Any]
    """The iteration's metrics as far as they were known; the line itself is written later."""
    history: tuple[tuple[int, str], ...]
    """Per trained iteration: its number, and a digest of the ids of the rollouts that it took."""


def policy_folder(checkpoint: Path, alias: str, trained: Sequence[str]) -> Path:
    """Where a checkpoint keeps a policy: the checkpoint itself if only one is trained, else `alias` in it."""
    return checkpoint / alias if len(trained) > 1 else checkpoint


def _named(iteration: int) -> str:
    return f"iteration-{iteration:06d}"


class Checkpoints:
    """The checkpoints of one run."""

    def __init__(self, folder: Path, *, keep: int) -> None:
        self._folder = folder
        self._keep = keep
        folder.mkdir(parents=True, exist_ok=True)
        for left_over in folder.glob(".writing-*"):
            shutil.rmtree(left_over)

    def newest(self) -> tuple[Path, State] | None:
        """The newest checkpoint; `None` before the first.

        Raises:
            RunError: its state can't be read, which a crash can't cause.
        """
        found = self._all()
        if not found:
            return None
        path = found[-1]
        try:
            state = msgspec.json.decode((path / _STATE).read_bytes(), type=State)
        except (OSError, msgspec.DecodeError) as error:
            raise RunError(
                f"the checkpoint {str(path)!r} is damaged ({error}); restore it, or start a new run"
                " under another 'name'"
            ) from error
        return path, state

    def write(self, state: State, save: Callable[[Path], None], *, best: int | None = None) -> Path:
        """Write a checkpoint, and delete those that are neither new nor the best.

        Args:
            state: what it says.
            save: puts the weights and optimiser into the folder it is given.
            best: iteration whose checkpoint stays. `None`: the newest ones alone.
        """
        path = self._folder / _named(state.iteration)
        draft = self._folder / f".writing-{path.name}"
        draft.mkdir()
        save(draft)
        (draft / _STATE).write_bytes(msgspec.json.format(msgspec.json.encode(state)))
        publish(draft, path)
        for old in self._all()[: -self._keep]:
            if best is not None and old.name == _named(best):
                continue
            # Out of sight first: what has a checkpoint's name is whole.
            doomed = old.rename(self._folder / f".writing-{old.name}")
            shutil.rmtree(doomed)
        return path

    def _all(self) -> list[Path]:
        return sorted(path for path in self._folder.iterdir() if _NAME.fullmatch(path.name))
