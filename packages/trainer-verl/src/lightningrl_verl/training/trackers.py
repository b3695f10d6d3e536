"""Trackers: the metrics' lines, shown by TensorBoard, Weights & Biases or MLflow as well.

verl's `Tracking` talks to them. Invariants: `metrics.jsonl` comes first and is the record; a tracker is given
each of its lines at most once, however often the run is started again; and nothing leaves the machine unless
the user's own environment says where to.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
from collections.abc import AsyncGenerator, Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec

from lightningrl.errors import RunError
from lightningrl.machine.durable import write_text
from lightningrl.recipe import Recipe
from lightningrl_verl.machine.quiet import quiet
from lightningrl_verl.training.metrics import Metrics

_PROJECT = "lightningrl"
"""What runs are filed under."""


class Trackers:
    """What a recipe's `trackers` names; nothing if it names none."""

    def __init__(self, recipe: Recipe, folder: Path) -> None:
        """Prepare; `folder` is where they keep what they write, unless the environment says otherwise."""
        self._recipe = recipe
        self._folder = folder
        self._tracking: Any = None
        # MLflow's run belongs to the thread that started it.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="trackers")

    async def start(self, lines: Sequence[Metrics]) -> None:
        """Begin or go on, and hand over those of the run's `lines` that were not yet.

        Raises:
            RunError: a tracker can't be started.
        """
        if not self._recipe.trackers:
            return
        await self._run(self._open)
        for line in lines:
            await self.log(line)

    async def log(self, line: Metrics) -> None:
        """Hand a line over, once."""
        if self._recipe.trackers and line["iteration"] > self._logged:
            await self._run(self._log, line)

    async def close(self) -> None:
        """Have everything written."""
        if self._tracking is not None:
            await self._run(self._tracking.finish)
        self._thread.shutdown(wait=True)

    async def _run(self, function: Any, *arguments: Any) -> None:
        await asyncio.get_running_loop().run_in_executor(self._thread, function, *arguments)

    def _open(self) -> None:
        from verl.utils.tracking import Tracking

        self._folder.mkdir(parents=True, exist_ok=True)
        names: list[str] = list(self._recipe.trackers)
        # What a run was started with stays as it was first said; guards may have changed since.
        config = None if self._logged >= 0 else msgspec.to_builtins(self._recipe)
        with _environment(self._variables()), quiet():
            self._tracking = Tracking(_PROJECT, self._recipe.name, names, config)
        missing = [name for name in names if name not in self._tracking.logger]
        if missing:
            raise RunError(
                f"trackers: {missing} could not be started, and said why above; correct their settings in"
                " the environment, or leave them out of 'trackers'"
            )
        if "mlflow" in names:
            import mlflow

            run = mlflow.active_run()
            assert run is not None
            write_text(self._mlflow_run, run.info.run_id)

    def _log(self, line: Metrics) -> None:
        # Before, not after: a crash in between loses the line there, and never doubles it.
        write_text(self._marker, str(line["iteration"]))
        self._tracking.log(data=_numbers(line), step=line["iteration"])
        if "tensorboard" in self._tracking.logger:
            self._tracking.logger["tensorboard"].writer.flush()

    @property
    def _logged(self) -> int:
        """The last iteration that was handed over; -1 before the first."""
        return int(self._marker.read_text()) if self._marker.exists() else -1

    @property
    def _marker(self) -> Path:
        return self._folder / "logged"

    @property
    def _wandb_run(self) -> str:
        """An id that no other run has, chosen at the first start."""
        path = self._folder / "wandb_run"
        if not path.exists():
            write_text(path, secrets.token_hex(8))
        return path.read_text()

    @property
    def _mlflow_run(self) -> Path:
        return self._folder / "mlflow_run"

    def _variables(self) -> dict[str, str]:
        """Variables of the trackers' own, for what the user's environment leaves open."""
        folder = self._folder.resolve()
        chosen = {
            "TENSORBOARD_DIR": str(folder / "tensorboard"),
            "WANDB_MODE": "offline",
            "WANDB_DIR": str(folder),
            "WANDB_SILENT": "true",
            "WANDB_RUN_ID": self._wandb_run,
            "WANDB_RESUME": "allow",
            "MLFLOW_TRACKING_URI": f"sqlite:///{folder / 'mlflow.db'}",
            "MLFLOW_DISABLE_TELEMETRY": "true",
        }
        if self._mlflow_run.exists():
            chosen["MLFLOW_RUN_ID"] = self._mlflow_run.read_text()
        return chosen


@contextlib.asynccontextmanager
async def trackers(
    recipe: Recipe, folder: Path, lines: Sequence[Metrics]
) -> AsyncGenerator[Trackers]:
    """Trackers that are started with the run's `lines` so far, and closed when the block ends."""
    opened = Trackers(recipe, folder)
    try:
        await opened.start(lines)
        yield opened
    finally:
        await asyncio.shield(opened.close())


def _numbers(line: Metrics) -> dict[str, float]:
    """The numbers of a line by name; those of a mapping stand one below the other."""
    numbers: dict[str, float] = {}
    for name, value in line.items():
        if isinstance(value, Mapping):
            numbers |= {f"{name}/{key}": one for key, one in _numbers(dict(value)).items()}
        elif isinstance(value, int | float) and name != "iteration":
            numbers[name] = float(value)
    return numbers


@contextlib.contextmanager
def _environment(defaults: Mapping[str, str]) -> Generator[None]:
    """Set variables that are not set, for as long as the block lasts."""
    added = [name for name in defaults if name not in os.environ]
    os.environ.update({name: defaults[name] for name in added})
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)
