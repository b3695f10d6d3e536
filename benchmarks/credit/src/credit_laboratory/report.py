"""The laboratory's results as one table and one plot."""

# ruff: noqa: T201 - a program for the terminal
from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from credit_laboratory.methods import CONTROLS, GAE, METHODS
from credit_laboratory.tasks import ENVIRONMENTS

Result = dict[str, Any]
"""One method on one task, as `measure` gives it."""

NEVER = "never"


def read_results(folder: Path) -> dict[str, dict[str, Result]]:
    """Results by task, then by method, in the order of the table."""
    found: dict[str, dict[str, Result]] = {}
    for task in ENVIRONMENTS:
        path = folder / f"{task}.json"
        if path.exists():
            results = json.loads(path.read_text(encoding="utf-8"))["results"]
            found[task] = {one["method"]: one for one in results}
    return found


def ratio(results: dict[str, Result], method: str) -> float:
    """Median tokens to the threshold over those of the better control; infinite if it isn't reached."""
    result = results[method]
    reached = float(np.median(result["tokens"]))
    control = min(float(np.median(results[name]["tokens"])) for name in CONTROLS)
    return reached / control if reached <= result["budget"] else float("inf")


def cell(results: dict[str, Result], method: str) -> str:
    """`median (times control), how many seeds never got there; final success`."""
    result = results.get(method)
    if result is None:
        return "-"
    tokens = np.array(result["tokens"])
    failed = int((tokens > result["budget"]).sum())
    relative = ratio(results, method)
    median = (
        NEVER if np.isinf(relative) else f"{_short(float(np.median(tokens)))} (x{relative:.2f})"
    )
    lost = f", {failed} never" if failed else ""
    return f"{median}{lost}; {np.mean(result['final']):.2f}"


def _short(tokens: float) -> str:
    return f"{tokens:.0f}" if tokens < 10_000 else f"{tokens / 1000:.1f}k"


def table(found: dict[str, dict[str, Result]]) -> str:
    """A Markdown table: methods down, tasks across."""
    tasks = list(found)
    lines = [f"| method | {' | '.join(tasks)} |", "|---" * (len(tasks) + 1) + "|"]
    for method in [*(one.name for one in METHODS), GAE]:
        cells = [cell(found[task], method) for task in tasks]
        lines.append(f"| {method} | {' | '.join(cells)} |")
    return "\n".join(lines)


def draw(found: dict[str, dict[str, Result]], path: Path) -> None:
    """Learning curves, one panel a task, mean over the seeds."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 3.1 * ((len(found) + 1) // 2)), layout="constrained")
    panels = figure.subplots((len(found) + 1) // 2, 2, squeeze=False).flat
    names = [*(one.name for one in METHODS), GAE]
    for (task, results), panel in zip(found.items(), panels, strict=False):
        for method, result in results.items():
            place = names.index(method)
            style = "--" if method in CONTROLS else "-" if place < 12 else "-."
            tokens = np.arange(1, len(result["curve"]) + 1) * result["budget"]
            panel.plot(
                tokens / len(result["curve"]),
                result["curve"],
                style,
                color=f"C{place % 10}" if method not in CONTROLS else ("0.3", "0.6")[place],
                linewidth=1.2,
                label=method,
            )
        panel.set_title(task)
        panel.set_xlabel("sampled tokens")
        panel.set_ylabel("success")
        panel.set_xscale("log")
        panel.axhline(0.8, color="0.85", linewidth=0.8, zorder=0)
        panel.legend(fontsize=6, ncols=2)
    for panel in panels:
        panel.set_axis_off()
    figure.savefig(path, dpi=110)


def write_report(folder: Path) -> None:
    """Write `table.md` and `curves.png` beside the results, and print the table."""
    found = read_results(folder)
    text = table(found)
    (folder / "table.md").write_text(text + "\n", encoding="utf-8")
    draw(found, folder / "curves.png")
    print(text)
