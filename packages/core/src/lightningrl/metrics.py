"""A run's `metrics.jsonl`: one JSON object per iteration, as the trainer writes it.

Invariant: reading never fails because the trainer is writing: a last line without its line end is
one that is being written (or was cut off by a crash, and resume writes it again), and is left out.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from lightningrl.errors import ConfigError, RunError

MetricLine = dict[str, Any]
"""One iteration: `iteration`, and whatever was measured in it, by metric name."""


def read_metrics(path: Path) -> list[MetricLine]:
    """The lines of a metrics file, in order; an empty file gives an empty list.

    Raises:
        ConfigError: there is no such file.
        RunError: a line is no JSON object with a whole number as `iteration`.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise ConfigError(
            f"there are no metrics at {str(path)!r}; a run writes them at the end of its first"
            " iteration"
        ) from error
    whole_lines = text.split("\n")[:-1]
    return [_parse(line, f"{path}:{number}") for number, line in enumerate(whole_lines, start=1)]


def series(lines: Sequence[Mapping[str, Any]], name: str) -> tuple[list[int], list[float]]:
    """One metric as (iterations, values), without the iterations that did not measure it."""
    points = [(line["iteration"], line.get(name)) for line in lines]
    measured = [
        (iteration, float(value))
        for iteration, value in points
        if isinstance(value, int | float) and math.isfinite(value)
    ]
    return [iteration for iteration, _ in measured], [value for _, value in measured]


def best_iteration(lines: Sequence[Mapping[str, Any]]) -> int | None:
    """The trained iteration that validation scored highest, the earliest of equals; `None`: none was scored.

    By what RL optimises, the sampled score, where it was taken; else by the greedy one. Iteration 0, before any
    update, has no checkpoint and does not count.
    """
    for name in ("val/reward_sampled", "val/reward"):
        iterations, values = series(lines, name)
        scored = [(value, -at) for at, value in zip(iterations, values, strict=True) if at > 0]
        if scored:
            return -max(scored)[1]
    return None


def seen_rewards(lines: Sequence[Mapping[str, Any]], now: Sequence[float]) -> tuple[float, float]:
    """The worst and the best training reward that a run has seen; none at all give zeros.

    Args:
        lines: of the iterations before.
        now: the rewards of this one.
    """
    low = [line["train/reward_min"] for line in lines if line.get("train/reward_min") is not None]
    high = [line["train/reward_max"] for line in lines if line.get("train/reward_max") is not None]
    return min([*now, *low], default=0.0), max([*now, *high], default=0.0)


def _parse(line: str, place: str) -> MetricLine:
    try:
        found: Any = json.loads(line)
    except json.JSONDecodeError as error:
        raise RunError(f"{place}: not JSON: {error}") from error
    if not isinstance(found, dict):
        raise RunError(f"{place}: a line of metrics is a JSON object, this is {line!r:.80}")
    metrics = cast("MetricLine", found)
    if not isinstance(metrics.get("iteration"), int):
        raise RunError(f"{place}: 'iteration' must be a whole number: {line!r:.80}")
    return metrics
