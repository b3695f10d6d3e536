"""The six charts and the table of `make curves`, from the cells that were measured; others are said to be missing."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from matplotlib.figure import Figure

from lightningrl.machine.durable import write_text
from lightningrl.metrics import series

_TITLES = {"sql": "text to SQL", "rag": "questions of several hops", "math": "word problems"}
_TRAIN, _VAL, _TEST, _PART = "#8c98a4", "#d1702a", "#2a7d4f", "#7a4fa3"


def write_report(results: Path, benchmarks: Sequence[str], seeds: Sequence[int]) -> None:
    """Write `curves.png` and `RESULTS.md` into the folder of results.

    Args:
        results: holds `BENCHMARK-seedN.json`.
        benchmarks: in the order in which they are shown.
        seeds: of which cells there should be results.
    """
    results.mkdir(exist_ok=True)
    cells = {
        (name, seed): json.loads(path.read_text(encoding="utf-8"))
        for name in benchmarks
        for seed in seeds
        if (path := results / f"{name}-seed{seed}.json").is_file()
    }
    _draw(cells, benchmarks, results / "curves.png")
    write_text(results / "RESULTS.md", table(cells, benchmarks, seeds))
    print(f"{len(cells)} of {len(benchmarks) * len(seeds)} cells; {results / 'RESULTS.md'}")


def table(
    cells: dict[tuple[str, int], dict[str, Any]], benchmarks: Sequence[str], seeds: Sequence[int]
) -> str:
    """The results as a page."""
    lines = [
        "# Results of `make curves`",
        "",
        "Written by `benchmarks/curves/results_page.py` from the JSON files beside it. Scores are mean rewards on the test split, sampled"
        " as in training unless said. *Gain* is the last checkpoint minus what the run began with (after its warm start), task by"
        " task, with its 95 % interval.",
        "",
        "![Reward by iteration](curves.png)",
        "",
        "| benchmark | seed | began | last | gain | greedy | training, first and last | minutes | commit |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name in benchmarks:
        for seed in seeds:
            found = cells.get((name, seed))
            cell = ["not run", *[""] * 6] if found is None else _row(found)
            lines.append(f"| {name} | {seed} | " + " | ".join(cell) + " |")
        of_benchmark = [one for (other, _), one in cells.items() if other == name]
        if len(of_benchmark) == len(seeds):
            gains = [one["test"]["difference"]["sampled"]["mean"] for one in of_benchmark]
            lines.append(f"| {name} | mean | | | {fmean(gains):+.3f} | | | | |")
    for (name, seed), one in cells.items():
        lines += ["", f"## {name}, seed {seed}", "", f"{one['machine']}.", "", "```bash"]
        lines += [*one["commands"], "```"]
        for when, parts in (("began", one["test"]["began"]), ("last", one["test"]["last"])):
            told = ", ".join(f"{k} {v:.3f}" for k, v in parts["sampled"]["parts"].items())
            if told:
                lines += ["", f"Test, sampled, {when}: {told}."]
    return "\n".join(lines) + "\n"


def _row(cell: dict[str, Any]) -> list[str]:
    test = cell["test"]
    began, last = (test[when]["sampled"]["reward"]["mean"] for when in ("began", "last"))
    gain = test["difference"]["sampled"]
    greedy = [test[when]["greedy"]["reward"]["mean"] for when in ("began", "last")]
    _, training = series(cell["lines"], "train/reward")
    return [
        f"{began:.3f}",
        f"{last:.3f}",
        f"{gain['mean']:+.3f} ({gain['low']:+.3f} to {gain['high']:+.3f})",
        f"{greedy[0]:.3f} → {greedy[1]:.3f}",
        f"{training[0]:.3f} → {training[-1]:.3f}",
        f"{seconds(cell) / 60:.0f}",
        f"`{str(cell['commit'])[:7]}`",
    ]


def seconds(cell: dict[str, Any]) -> float:
    """Of a cell's warm starts and iterations, scoring included."""
    phases = [line.get("timing/iteration_seconds", 0.0) for line in cell["lines"]]
    scoring = [
        line.get(f"timing/{phase}_seconds", 0.0)
        for line in cell["lines"]
        for phase in ("validate", "test")
    ]
    return sum(cell["warm_start_seconds"]) + sum(phases) + sum(scoring)


def _draw(
    cells: dict[tuple[str, int], dict[str, Any]], benchmarks: Sequence[str], out: Path
) -> None:
    figure: Any = Figure(figsize=(4.2 * len(benchmarks), 6.4), layout="constrained")
    charts: Any = figure.subplots(2, len(benchmarks), squeeze=False)
    for column, name in enumerate(benchmarks):
        of_benchmark = [one for (other, _), one in cells.items() if other == name]
        train, held_out = charts[0][column], charts[1][column]
        train.set_title(_TITLES.get(name, name), loc="left", fontweight="bold")
        _curves(train, of_benchmark, "train/reward", _TRAIN, "training, sampled")
        _curves(held_out, of_benchmark, "val/reward_sampled", _VAL, "held out, sampled")
        for part in ("format", "accuracy"):
            style = ":" if part == "format" else "--"
            _curves(held_out, of_benchmark, f"val/part_sampled/{part}", _PART, part, style)
        _test_points(held_out, of_benchmark)
        for chart in (train, held_out):
            chart.set_ylim(-0.02, 1.02)
            chart.set_xlabel("iteration")
            chart.grid(axis="y", color="#e4e7eb")
            if of_benchmark:
                chart.legend(frameon=False, fontsize=8)
            else:
                chart.text(0.5, 0.5, "not run", ha="center", transform=chart.transAxes)
    charts[0][0].set_ylabel("training reward")
    charts[1][0].set_ylabel("held-out reward")
    figure.savefig(out, dpi=140, format="png", facecolor="white")


def _curves(
    chart: Any,
    cells: Sequence[dict[str, Any]],
    name: str,
    colour: str,
    label: str,
    style: str = "-",
) -> None:
    """Each seed thin, their mean thick where all have the iteration."""
    found = [dict(zip(*series(one["lines"], name), strict=True)) for one in cells]
    found = [one for one in found if one]
    if not found:
        return
    for one in found if len(found) > 1 else ():
        chart.plot(list(one), list(one.values()), style, color=colour, lw=0.8, alpha=0.5)
    common = sorted(set.intersection(*(set(one) for one in found)))
    mean = [fmean(one[at] for one in found) for at in common]
    spread = "" if len(found) == 1 else f", mean of {len(found)} seeds"
    chart.plot(common, mean, style, color=colour, lw=2.0, label=label + spread)


def _test_points(chart: Any, cells: Sequence[dict[str, Any]]) -> None:
    for number, one in enumerate(cells):
        last = one["lines"][-1]["iteration"]
        scores = [one["test"][when]["sampled"]["reward"]["mean"] for when in ("began", "last")]
        label = "test, sampled" if not number else None
        chart.plot([0, last], scores, "*", color=_TEST, markersize=11, label=label)
