"""What a run's folder says, without its store.

Invariant: whatever is missing, torn or being written is said as missing; a run that has just begun has all of it
missing.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lightningrl.cli.run_starts import read_starts, trainer_process
from lightningrl.metrics import MetricLine, read_metrics, series
from lightningrl.recipe import LoadedRecipe
from lightningrl.store.urls import Kind, kind_of, path_of

_LOG_BYTES = 16_384
"""How much of a log's end is shown."""


@dataclass(frozen=True)
class Headline:
    """The one number by which a run is judged."""

    metric: str
    higher_is_better: bool


_HEADLINES = (
    Headline("val/reward", True),
    Headline("train/reward", True),
    Headline("sft/val_loss", False),
    Headline("sft/loss", False),
)


@dataclass(frozen=True)
class Progress:
    """How far a run is."""

    state: str
    """`training`, `finished`, `stopped`, `ended` (whether it finished is not known), `not started`."""
    iteration: int | None
    """The last one whose metrics are written. `None`: none."""
    iterations: int | None
    """How many there will be. `None`: not known here."""
    process: int | None
    """The trainer's, while it trains."""
    ended: str = ""
    """How its last start ended, when and why; empty where that is not known, or while it trains."""


def metric_lines(folder: Path | None) -> list[MetricLine]:
    """The lines of a run's metrics; none where there are none yet.

    Raises:
        RunError: the file is damaged.
    """
    path = None if folder is None else folder / "metrics.jsonl"
    if path is None or not path.is_file():
        return []
    found = path.stat()
    return _lines(path, found.st_size, found.st_mtime_ns)


@functools.lru_cache(maxsize=16)
def _lines(path: Path, size: int, changed_ns: int) -> list[MetricLine]:
    del size, changed_ns  # of the file that was read: they are what the cache knows it by
    return read_metrics(path)


def headline(lines: Sequence[MetricLine]) -> Headline | None:
    """By which metric the run is judged. `None`: it has none of them yet."""
    return next((one for one in _HEADLINES if series(lines, one.metric)[0]), None)


def progress(
    folder: Path | None, recipe: LoadedRecipe | None, lines: Sequence[MetricLine]
) -> Progress | None:
    """How far the run in `folder` is. `None`: only its store is known."""
    if folder is None:
        return None
    iteration = lines[-1]["iteration"] if lines else None
    algorithm = recipe.recipe.algorithm if recipe is not None else None
    iterations = algorithm.iterations if algorithm is not None else None
    process = trainer_process(folder)
    if process is not None:
        state = "training"
    elif iteration is None:
        state = "not started" if not (folder / "logs").exists() else "stopped"
    else:
        finished = iterations is None or iteration >= iterations
        state = ("ended" if iterations is None else "finished") if finished else "stopped"
    starts = [] if process is not None else read_starts(folder)
    return Progress(state, iteration, iterations, process, starts[-1].said if starts else "")


def log_ends(folder: Path | None) -> dict[str, str]:
    """Name of each log that is not empty -> its last lines."""
    if folder is None or not (folder / "logs").is_dir():
        return {}
    ends: dict[str, str] = {}
    for path in sorted((folder / "logs").glob("*.log")):
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _LOG_BYTES))
            text = file.read().decode(errors="replace")
        if size > _LOG_BYTES:
            text = text.partition("\n")[2]
        if text:
            ends[path.name] = text
    return ends


def pulse(folder: Path | None, store_url: str | None) -> str:
    """A text that changes when the run's files do; what a server or PostgreSQL holds is not among them."""
    paths: list[Path] = []
    if folder is not None:
        paths += [
            folder / "metrics.jsonl",
            folder / "run.json",
            folder / ".lock",
            *sorted((folder / "logs").glob("*.log")),
        ]
    if store_url is not None and kind_of(store_url) is Kind.SQLITE:
        paths += [path_of(store_url), Path(f"{path_of(store_url)}-wal")]
    found = [(path.name, path.stat()) for path in paths if path.exists()]
    return " ".join(f"{name}:{one.st_size}:{one.st_mtime_ns}" for name, one in found)
