"""`python -m credit_laboratory run|report`: measure methods on tasks, and write the table and the plot."""

# ruff: noqa: T201 - a program for the terminal
from __future__ import annotations

import argparse
import json
import subprocess
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from credit_laboratory.methods import methods_of
from credit_laboratory.report import write_report
from credit_laboratory.tasks import ENVIRONMENTS
from credit_laboratory.training import ROLLOUTS, Curve, Settings, train

TUNING_SEEDS = tuple(range(100, 105))
"""Steps are chosen per method on these."""
SEEDS = tuple(range(200, 220))
"""And measured on these, which nothing was chosen by."""
LONGEST_UPDATES = 150
"""Updates that a seed's tokens are enough for if all of its rollouts are as long as they can be."""
GRID = tuple(Settings(kl, rate) for kl in (0.03, 0.1) for rate in (512.0, 4096.0))
THRESHOLD = 0.8
WINDOW = 5
"""Updates whose mean success must reach the threshold."""
MARKS = 150
"""Places of a curve, evenly through the budget."""
RESULTS = Path(__file__).resolve().parents[2] / "results"


def tokens_to_threshold(curve: Curve, budget: int) -> list[int]:
    """Per seed, tokens sampled up to the first update whose last `WINDOW` reached `THRESHOLD` on average.

    One token more than the budget, where none did within it.
    """
    sums = np.cumsum(np.vstack([np.zeros((1, curve.success.shape[1])), curve.success]), axis=0)
    reached = (sums[WINDOW:] - sums[:-WINDOW]) / WINDOW >= THRESHOLD - 1e-9
    tokens = curve.tokens[WINDOW - 1 :]
    reached = reached & (tokens <= budget)
    first = tokens[reached.argmax(0), np.arange(tokens.shape[1])]
    return [int(one) for one in np.where(reached.any(0), first, budget + 1)]


def success_at(curve: Curve, tokens: int) -> np.ndarray:
    """[S] success in the update in which each seed sampled its `tokens`-th token."""
    update = (curve.tokens < tokens).sum(0)
    return curve.success[update, np.arange(curve.success.shape[1])]


def measure(
    task: str,
    method: str,
    *,
    grid: tuple[Settings, ...] = GRID,
    tuning: tuple[int, ...] = TUNING_SEEDS,
    seeds: tuple[int, ...] = SEEDS,
    budget: int | None = None,
) -> dict[str, Any]:
    """Choose the step on the tuning seeds, then measure on the others; `budget` in tokens of each seed."""
    began = time.monotonic()
    if budget is None:
        budget = LONGEST_UPDATES * ROLLOUTS * ENVIRONMENTS[task].turns
    marks = [budget * number // MARKS for number in range(1, MARKS + 1)]

    def cost(settings: Settings) -> tuple[float, float]:
        curve = train(task, method, settings, tuning, budget)
        mean = np.mean([success_at(curve, mark) for mark in marks])
        return float(np.mean(tokens_to_threshold(curve, budget))), -float(mean)

    best = min(grid, key=cost)
    curve = train(task, method, best, seeds, budget)
    points = np.stack([success_at(curve, mark) for mark in marks])
    return {
        "task": task,
        "method": method,
        "kl": best.kl,
        "rate": best.rate,
        "tokens": tokens_to_threshold(curve, budget),
        "final": [round(float(one), 4) for one in points[-10:].mean(0)],
        "curve": [round(float(one), 4) for one in points.mean(1)],
        "budget": budget,
        "seconds": round(time.monotonic() - began, 1),
    }


def run(tasks: list[str], methods: list[str], jobs: int) -> None:
    """Measure every method on every task that it is defined on; one results file per task."""
    RESULTS.mkdir(exist_ok=True)
    commit = _commit()
    with ProcessPoolExecutor(jobs) as pool:
        for task in tasks:
            names = methods_of(ENVIRONMENTS[task])
            chosen = [name for name in names if not methods or name in methods]
            path = RESULTS / f"{task}.json"
            kept = json.loads(path.read_text())["results"] if methods and path.exists() else []
            found: list[dict[str, Any]] = [
                {**one, "commit": commit} for one in pool.map(measure, [task] * len(chosen), chosen)
            ]
            kept = [one for one in kept if one["method"] not in chosen]
            order = {name: place for place, name in enumerate(names)}
            results = sorted([*kept, *found], key=lambda one: order[one["method"]])
            about = {"seeds": SEEDS, "tuned_on": TUNING_SEEDS}
            path.write_text(_document(about, results), encoding="utf-8")
            print(f"{task}: {len(found)} methods, {sum(one['seconds'] for one in found):.0f} s")


def _document(about: dict[str, Any], results: list[dict[str, Any]]) -> str:
    """JSON with a result a line, so that a change shows as the lines that it changed."""
    lines = ",\n".join(json.dumps(one) for one in results)
    return f'{json.dumps(about)[:-1]}, "results": [\n{lines}\n]}}\n'


def _commit() -> str:
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False
    )
    return done.stdout.strip() or "unknown"


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="credit_laboratory", description=__doc__)
    parser.add_argument("command", choices=["run", "report"])
    parser.add_argument("--tasks", nargs="+", default=list(ENVIRONMENTS), choices=ENVIRONMENTS)
    parser.add_argument("--methods", nargs="+", default=[], help="these alone; others are kept")
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    chosen = parser.parse_args()
    if chosen.command == "run":
        run(chosen.tasks, chosen.methods, chosen.jobs)
    else:
        write_report(RESULTS)


if __name__ == "__main__":
    main()
