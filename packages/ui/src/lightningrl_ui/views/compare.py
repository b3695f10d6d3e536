"""Several runs side by side: a metric over iterations, rollouts or hours, and what their recipes differ in."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from lightningrl.metrics import MetricLine
from lightningrl.recipe import Recipe, changed_keys
from lightningrl_ui.run_files import metric_lines
from lightningrl_ui.sources import Run

AXES = {"iteration": "iteration", "rollouts": "training rollouts", "hours": "hours of training"}
"""What metrics can be drawn over -> its title."""

_NO_DIFFERENCE = frozenset({"seed", "name", "folder", "gateway.port"})
"""Keys of the recipe in which runs of one experiment differ."""


@dataclass(frozen=True)
class Curve:
    """A metric of one run."""

    label: str
    x: tuple[float, ...]
    y: tuple[float, ...]


@dataclass(frozen=True)
class Band:
    """A metric of runs that differ in their seed alone, where all of them have it."""

    label: str
    x: tuple[float, ...]
    mean: tuple[float, ...]
    least: tuple[float, ...]
    most: tuple[float, ...]
    deviation: tuple[float, ...]
    """Of the sample (n - 1)."""


@dataclass(frozen=True)
class Difference:
    """A key of the recipes that has several values."""

    key: str
    values: tuple[Any, ...]
    """Of each run; `None` also where it is unknown."""


def curves(runs: Sequence[Run], metric: str, axis: str) -> list[Curve]:
    """The metric of each run that has it."""
    found: list[Curve] = []
    for run in runs:
        lines = metric_lines(run.folder)
        points = [
            (x, line[metric])
            for x, line in zip(_axis(lines, axis), lines, strict=True)
            if isinstance(line.get(metric), int | float)
        ]
        if points:
            xs, ys = zip(*points, strict=True)
            found.append(Curve(run.key, xs, ys))
    return found


def _axis(lines: Sequence[MetricLine], axis: str) -> list[float]:
    if axis == "rollouts":
        return list(itertools.accumulate(line.get("train/rollouts") or 0 for line in lines))
    if axis == "hours":
        seconds = (line.get("timing/iteration_seconds") or 0.0 for line in lines)
        return [total / 3600 for total in itertools.accumulate(seconds)]
    return [float(line["iteration"]) for line in lines]


def seed_sets(runs: Sequence[Run]) -> list[list[Run]]:
    """Runs whose recipes differ in nothing but the seed together, each run in one set, in order."""
    sets: list[list[Run]] = []
    for run in runs:
        for one in sets:
            if _same_but_seed(one[0], run):
                one.append(run)
                break
        else:
            sets.append([run])
    return sets


def _same_but_seed(one: Run, other: Run) -> bool:
    if one.recipe is None or other.recipe is None:
        return False
    return set(changed_keys(one.recipe.recipe, other.recipe.recipe)) <= _NO_DIFFERENCE


def bands(runs: Sequence[Run], metric: str) -> list[Band]:
    """Mean and spread over the seeds, by iteration, of each set of at least two runs."""
    found: list[Band] = []
    for together in seed_sets(runs):
        values = [
            dict(zip(one.x, one.y, strict=True)) for one in curves(together, metric, "iteration")
        ]
        if len(values) < 2:
            continue
        shared = sorted(set.intersection(*(set(one) for one in values)))
        samples = [[one[x] for one in values] for x in shared]
        found.append(
            Band(
                label=f"mean of {len(values)}: {', '.join(run.key for run in together)}",
                x=tuple(shared),
                mean=tuple(map(statistics.fmean, samples)),
                least=tuple(map(min, samples)),
                most=tuple(map(max, samples)),
                deviation=tuple(map(statistics.stdev, samples)),
            )
        )
    return found


def differences(runs: Sequence[Run]) -> list[Difference]:
    """The keys that have several values among the runs whose recipes are known, sorted."""
    recipes: list[Recipe | None] = [
        None if run.recipe is None else run.recipe.recipe for run in runs
    ]
    known = [one for one in recipes if one is not None]
    keys = sorted({key for one in known[1:] for key in changed_keys(known[0], one)})
    trees = [None if one is None else msgspec.to_builtins(one) for one in recipes]
    return [Difference(key, tuple(_at(tree, key) for tree in trees)) for key in keys]


def _at(tree: Any, key: str) -> Any:
    """The value at a dotted key, whose parts may have dots themselves."""
    if not isinstance(tree, dict):
        return None
    if key in tree:
        return tree[key]
    parts = key.split(".")
    for length in range(1, len(parts)):
        head = ".".join(parts[:length])
        if head in tree:
            return _at(tree[head], ".".join(parts[length:]))
    return None
