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

Cells = dict[tuple[str, int], dict[str, Any]]
"""(benchmark, seed) -> the JSON of its result."""
ABOVE = 0.10
"""How far reinforcement learning should end above the better control."""
_TITLES = {"sql": "text to SQL", "rag": "questions of several hops", "math": "word problems"}
_TRAIN, _VAL, _TEST, _PART = "#8c98a4", "#d1702a", "#2a7d4f", "#7a4fa3"


def write_report(results: Path, benchmarks: Sequence[str], seeds: Sequence[int]) -> None:
    """Write `curves.png` and `RESULTS.md` into the folder of results.

    Args:
        results: holds `BENCHMARK-seedN.json`, and `BENCHMARK-seedN-controls.json` where controls were measured.
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
    controls = {
        key: json.loads(path.read_text(encoding="utf-8"))
        for key in cells
        if (path := results / f"{key[0]}-seed{key[1]}-controls.json").is_file()
    }
    _draw(cells, benchmarks, results / "curves.png")
    write_text(results / "RESULTS.md", table(cells, controls, benchmarks, seeds))
    print(f"{len(cells)} of {len(benchmarks) * len(seeds)} cells; {results / 'RESULTS.md'}")


def table(cells: Cells, controls: Cells, benchmarks: Sequence[str], seeds: Sequence[int]) -> str:
    """The results as a page."""
    lines = [
        "# Results of `make curves`",
        "",
        *(_against_controls(name, cells, controls) for name in benchmarks),
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
    lines += _control_rows(controls)
    for (name, seed), one in cells.items():
        lines += ["", f"## {name}, seed {seed}", "", f"{one['machine']}.", "", "```bash"]
        lines += [*one["commands"], "```"]
        for when, parts in (("began", one["test"]["began"]), ("last", one["test"]["last"])):
            told = ", ".join(f"{k} {v:.3f}" for k, v in parts["sampled"]["parts"].items())
            if told:
                lines += ["", f"Test, sampled, {when}: {told}."]
        if (name, seed) in controls:
            lines += ["", "```bash", *controls[name, seed]["commands"], "```"]
    return "\n".join(lines) + "\n"


def _against_controls(name: str, cells: Cells, controls: Cells) -> str:
    """Whether reinforcement learning ended above what the same time of fine-tuning gives."""
    of_benchmark = [key for key in sorted(controls) if key[0] == name]
    if not of_benchmark:
        return f"- {name}: the controls were not run."
    key = of_benchmark[0]
    best = max(controls[key]["controls"].values(), key=lambda one: _mean(one, "sampled"))
    last = _mean(cells[key]["test"]["last"], "sampled")
    above = last - _mean(best, "sampled")
    verdict = "ends" if round(above, 9) >= ABOVE else "does not end"
    return (
        f"- {name}: with seed {key[1]} reinforcement learning {verdict} {ABOVE:.2f} above the better control:"
        f" {last:.3f}, {_mean(best, 'sampled'):.3f}, difference {_interval(best['below_last'])}."
    )


def _control_rows(controls: Cells) -> list[str]:
    if not controls:
        return []
    lines = [
        "",
        "*More* is more passes over the same demonstrations, for as many seconds as warm start and iterations took; *right* is the"
        " same over demonstrations without slips; *base* is the model as it is. *Below* is what the last checkpoint scored more,"
        " sampled, task by task.",
        "",
        "| benchmark | seed | control | passes | sampled | greedy | below |",
        "|---|---|---|---|---|---|---|",
    ]
    for (name, seed), one in sorted(controls.items()):
        rows = [("base", "", one["base"], "")]
        for control, found in one["controls"].items():
            rows.append((control, str(one["epochs"]), found, _interval(found["below_last"])))
        for control, passes, found, below in rows:
            scores = f"{_mean(found, 'sampled'):.3f} | {_mean(found, 'greedy'):.3f}"
            lines.append(f"| {name} | {seed} | {control} | {passes} | {scores} | {below} |")
    return lines


def _mean(scores: dict[str, Any], how: str) -> float:
    """Mean reward. A policy whose rollouts all failed has none, and no page."""
    return scores[how]["reward"]["mean"]


def _interval(numbers: dict[str, float]) -> str:
    return f"{numbers['mean']:+.3f} ({numbers['low']:+.3f} to {numbers['high']:+.3f})"


def _row(cell: dict[str, Any]) -> list[str]:
    test = cell["test"]
    began, last = (test[when]["sampled"]["reward"]["mean"] for when in ("began", "last"))
    gain = test["difference"]["sampled"]
    greedy = [test[when]["greedy"]["reward"]["mean"] for when in ("began", "last")]
    _, training = series(cell["lines"], "train/reward")
    return [
        f"{began:.3f}",
        f"{last:.3f}",
        _interval(gain),
        f"{greedy[0]:.3f} → {greedy[1]:.3f}",
        f"{training[0]:.3f} → {training[-1]:.3f}",
        f"{seconds(cell) / 60:.0f}",
        f"`{str(cell['commit'])[:7]}`",
    ]


def seconds(cell: dict[str, Any]) -> float:
    """Of a cell's warm starts and iterations, scoring included."""
    scoring = [
        line.get(f"timing/{phase}_seconds", 0.0)
        for line in cell["lines"]
        for phase in ("validate", "test")
    ]
    return sum(cell["warm_start_seconds"]) + iteration_seconds(cell) + sum(scoring)


def iteration_seconds(cell: dict[str, Any]) -> float:
    """Of a cell's iterations, without scoring."""
    return sum(line.get("timing/iteration_seconds", 0.0) for line in cell["lines"])


def _draw(cells: Cells, benchmarks: Sequence[str], out: Path) -> None:
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
