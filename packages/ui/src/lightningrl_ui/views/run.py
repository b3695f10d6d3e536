"""A run, and the line that it has among others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from lightningrl.checks import Finding, Place, examine
from lightningrl.cli.doctor import gather_evidence
from lightningrl.cli.drift import read_report
from lightningrl.cli.stored_run import StoredRun, read_origin
from lightningrl.errors import LightningError, NotFound
from lightningrl.experience.drift import Drift, DriftReport
from lightningrl.guards import Reading, guard_readings
from lightningrl.metrics import MetricLine, series
from lightningrl.recipe import dump_recipe
from lightningrl.schema import Mode
from lightningrl.schema import Progress as Counts
from lightningrl.store import RolloutQuery, Store
from lightningrl_ui.run_files import (
    Headline,
    Progress,
    headline,
    log_ends,
    metric_lines,
    progress,
)
from lightningrl_ui.sources import Run

COUNTED = 8
"""Iterations of a store whose rollouts are counted for one page: a count reads all of an iteration's."""


@dataclass(frozen=True)
class RunLine:
    """A run among others."""

    run: Run
    progress: Progress | None
    headline: Headline | None
    last: float | None
    """Of the headline's metric."""
    best: float | None
    curve: tuple[float, ...]
    """The headline's metric, one value per iteration that has it."""
    started_at: str | None
    problem: str | None


def run_line(run: Run) -> RunLine:
    """A run's line; whatever can't be read is its problem, and the others are shown."""
    try:
        lines = metric_lines(run.folder)
        origin = {} if run.folder is None else read_origin(run.folder)
        far = progress(run.folder, run.recipe, lines)
    except LightningError as error:
        return RunLine(run, None, None, None, None, (), None, str(error))
    by = headline(lines)
    values = series(lines, by.metric)[1] if by is not None else []
    better = max if by is None or by.higher_is_better else min
    return RunLine(
        run=run,
        progress=far,
        headline=by,
        last=values[-1] if values else None,
        best=better(values) if values else None,
        curve=tuple(values),
        started_at=origin.get("started_at"),
        problem=run.problem,
    )


@dataclass(frozen=True)
class RunView:
    """Everything about one run but its rollouts."""

    line: RunLine
    lines: list[MetricLine]
    origin: Mapping[str, Any]
    guards: list[Reading]
    drift: DriftReport | None
    """`None`: nothing was trained yet."""
    phases: list[tuple[str, float, float]]
    """Where an iteration's time goes: phase, mean seconds, share of all phases; the longest first."""
    recipe: str | None
    """Resolved, as YAML."""
    logs: dict[str, str]
    iterations: list[IterationLine]
    """The newest first."""


@dataclass(frozen=True)
class IterationLine:
    """One iteration among others."""

    iteration: int
    line: MetricLine
    """Empty while it is not over."""
    counts: dict[str, Counts]
    """Mode -> its rollouts, of an iteration that is under way; else empty."""

    @property
    def under_way(self) -> str:
        """How far each mode's rollouts are; empty of an iteration that is over."""
        return "; ".join(_said(mode, count) for mode, count in self.counts.items())


ITERATION_COLUMNS = {
    "training reward": "train/reward",
    "validation": "val/reward",
    "rollouts": "train/rollouts",
    "groups": "train/groups",
    "flat": "train/groups_without_signal",
    "failed": "train/failed",
    "trained tokens": "train/tokens",
    "time": "timing/iteration_seconds",
}
"""Title of a column of the iterations -> its metric."""


def _said(mode: str, count: Counts) -> str:
    running = f", {count.running} run" if count.running else ""
    reward = "" if count.mean_reward is None else f", reward {count.mean_reward:.4g}"
    return f"{mode} {count.ended} of {count.total}{running}{reward}"


def run_view(run: Run) -> RunView:
    """What a run's folder tells; without one almost nothing.

    Raises:
        RunError: its metrics are damaged.
    """
    lines = metric_lines(run.folder)
    recipe = run.recipe.recipe if run.recipe is not None else None
    return RunView(
        line=run_line(run),
        lines=lines,
        origin={} if run.folder is None else read_origin(run.folder),
        guards=guard_readings(lines, recipe.guards) if recipe is not None else [],
        drift=_drift(run),
        phases=phases(lines),
        recipe=dump_recipe(recipe) if recipe is not None else None,
        logs=log_ends(run.folder),
        iterations=[IterationLine(line["iteration"], line, {}) for line in reversed(lines)],
    )


async def iterations_under_way(
    store: Store, run: Run, lines: Sequence[MetricLine]
) -> list[IterationLine]:
    """Iterations that have rollouts and no line in the metrics yet, the newest first.

    Of a run whose store alone is known these are all; those before the newest `COUNTED` are not counted.
    """
    known = lines[-1]["iteration"] if lines else -1
    newest = known + 1 if run.folder is not None else await _newest_iteration(store, run)
    found: list[IterationLine] = []
    for iteration in range(newest, known, -1):
        if iteration <= newest - COUNTED:
            found.append(IterationLine(iteration, {}, {}))
        elif counts := await iteration_counts(store, run, iteration):
            found.append(IterationLine(iteration, {}, counts))
    return found


async def iteration_counts(store: Store, run: Run, iteration: int) -> dict[str, Counts]:
    """Mode -> how far its rollouts of an iteration are; modes without any are left out."""
    counts = {mode.value: await store.progress(run.name, mode, iteration) for mode in Mode}
    return {mode: count for mode, count in counts.items() if count.total}


async def _newest_iteration(store: Store, run: Run) -> int:
    latest = await store.rollouts(RolloutQuery(run=run.name, descending=True, limit=1))
    return latest[0].spec.iteration if latest else -1


async def findings(run: Run, store: Store) -> list[Finding]:
    """What `lightningrl doctor` says of a run, without what it asks of engines."""
    evidence = await gather_evidence(
        StoredRun(run.name, store, run.recipe, run.folder), ask_engines=False
    )
    return examine(evidence, Place.DOCTOR)


_WHOLE = ("timing/iteration_seconds", "timing/save_seconds")
"""Sums of others, and parts of them."""


def phases(lines: Sequence[MetricLine]) -> list[tuple[str, float, float]]:
    """See `RunView.phases`."""
    names = phase_metrics(lines)
    means = {name: series(lines, name)[1] for name in names}
    total = sum(sum(values) for values in means.values())
    found = [
        (phase_name(name), sum(values) / len(values), sum(values) / total if total else 0.0)
        for name, values in means.items()
        if values
    ]
    return sorted(found, key=lambda one: -one[2])


def phase_metrics(lines: Sequence[MetricLine]) -> list[str]:
    """The metrics that are seconds of phases, which do not overlap, in order of appearance."""
    seen = dict.fromkeys(name for line in lines for name in line if name.startswith("timing/"))
    return [name for name in seen if name.endswith("_seconds") and name not in _WHOLE]


def phase_name(metric: str) -> str:
    """`timing/collect_seconds` -> `collect`."""
    return metric.removeprefix("timing/").removesuffix("_seconds")


def metric_names(lines: Sequence[MetricLine]) -> list[str]:
    """Every metric that is a number somewhere, sorted."""
    return sorted(
        {
            name
            for line in lines
            for name, value in line.items()
            if isinstance(value, int | float) and name != "iteration"
        }
    )


def _drift(run: Run) -> DriftReport | None:
    if run.folder is None:
        return None
    try:
        return read_report(run.folder)
    except (
        NotFound,
        msgspec.DecodeError,
    ):  # the trainer replaces it whole; an older one may lack fields
        return None


def drift_rows(drift: Drift) -> list[tuple[str, float, str]]:
    """What was trained of what was sampled, and why not the rest: what, how much, and in which unit."""
    rows: list[tuple[str, float, str]] = [
        ("sampled", drift.sampled, "tokens"),
        ("trained", drift.trained, "tokens"),
        ("masked: stand in a row as context", drift.masked, "tokens"),
        ("dropped: stand in no row", drift.dropped, "tokens"),
        *((f"not trained: {reason}", n, "tokens") for reason, n in drift.untrainable.items()),
        ("should continue a row", drift.continuing, "calls"),
        ("continued it", drift.continued, "calls"),
        *((f"broke the row: {cause}", n, "calls") for cause, n in drift.breaks.items()),
    ]
    if drift.rendered:
        rows.insert(2, ("trained, tokenised from text", drift.rendered, "tokens"))
    if drift.gap is not None:
        rows.append(("engine-trainer gap, mean", drift.gap.mean, "nats"))
        rows.append(("engine-trainer gap, largest", drift.gap.max, "nats"))
    return rows
