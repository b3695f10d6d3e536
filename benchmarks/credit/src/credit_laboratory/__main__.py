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
from credit_laboratory.training import ROLLOUTS, Settings, train

TUNING_SEEDS = tuple(range(100, 105))
"""Steps are chosen per method on these."""
SEEDS = tuple(range(200, 220))
"""And measured on these, which nothing was chosen by."""
UPDATES = 150
GRID = tuple(Settings(kl, rate) for kl in (0.03, 0.1) for rate in (512.0, 4096.0))
THRESHOLD = 0.8
WINDOW = 5
"""Updates whose mean success must reach the threshold."""
RESULTS = Path(__file__).resolve().parents[2] / "results"


def rollouts_to_threshold(history: np.ndarray) -> list[int]:
    """Per seed, rollouts up to the first update whose last `WINDOW` reached `THRESHOLD` on average.

    One update more than there were, where none did.

    Args:
        history: [updates, seeds] success.
    """
    updates = len(history)
    sums = np.cumsum(np.vstack([np.zeros((1, history.shape[1])), history]), axis=0)
    reached = (sums[WINDOW:] - sums[:-WINDOW]) / WINDOW >= THRESHOLD - 1e-9
    first = np.where(reached.any(0), reached.argmax(0) + WINDOW, updates + 1)
    return [int(one) * ROLLOUTS for one in first]


def measure(
    task: str,
    method: str,
    *,
    grid: tuple[Settings, ...] = GRID,
    tuning: tuple[int, ...] = TUNING_SEEDS,
    seeds: tuple[int, ...] = SEEDS,
    updates: int = UPDATES,
) -> dict[str, Any]:
    """Choose the step on the tuning seeds, then measure on the others."""
    began = time.monotonic()

    def cost(settings: Settings) -> tuple[float, float]:
        history = train(task, method, settings, tuning, updates)
        return float(np.mean(rollouts_to_threshold(history))), -float(history.mean())

    best = min(grid, key=cost)
    history = train(task, method, best, seeds, updates)
    return {
        "task": task,
        "method": method,
        "kl": best.kl,
        "rate": best.rate,
        "rollouts": rollouts_to_threshold(history),
        "final": [round(float(one), 4) for one in history[-10:].mean(0)],
        "curve": [round(float(one), 4) for one in history.mean(1)],
        "budget": updates * ROLLOUTS,
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
            found = list(pool.map(measure, [task] * len(chosen), chosen))
            kept = [one for one in kept if one["method"] not in chosen]
            order = {name: place for place, name in enumerate(names)}
            results = sorted([*kept, *found], key=lambda one: order[one["method"]])
            about = {"commit": commit, "seeds": SEEDS, "tuned_on": TUNING_SEEDS}
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
