"""The curves of the benchmarks: `make curves`, one cell for each benchmark and seed.

    make curves                    all cells that have no result yet, then the figure and the table
    make curves ONLY=math SEED=0   one cell
    make curves ONLY=math SEED=0 CONTROLS=1
                                   what the same time gives without reinforcement learning, beside that cell
    make curves QUICK=1            a few iterations from warm starts in the cache, kept apart from the results
    make curves REPORT=1           the figure and the table alone, from the results that are there

A cell is `lightningrl train` with its recipe and seed, then `lightningrl eval` on the test split of what the run began
with and of its last checkpoint, task by task. Its controls are `lightningrl sft`: as many more passes over the
demonstrations as the cell's warm start and iterations took seconds, once as they are and once without slips; and the
model as it is. Invariants: a cell's result is written once, whole, when all of it has been measured; a cell that was
stopped goes on from its run's checkpoint; every number in the report is one of a result.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightningrl.cli.stored_run import read_origin
from lightningrl.machine.durable import write_text
from lightningrl.metrics import read_metrics
from lightningrl.statistics import paired_difference
from results_page import iteration_seconds, write_report

HERE = Path(__file__).parent
RECIPES = {name: HERE.parent / name / "recipes" / "laptop.yaml" for name in ("sql", "rag", "math")}
"""Benchmark -> the recipe that its cells train."""
SEEDS = (0, 1, 2)
RESULTS = HERE / "results"
QUICK = ("algorithm.iterations=2", "validation.every=2", "data.val.limit=16", "data.test.limit=16")
"""What `QUICK=1` changes. Its figures show that everything works, and nothing else."""
WARM_START = "policies.policy.warm_start"
"""Key of the recipes."""
CONTROLS = {"more": (), "right": (f"{WARM_START}.args.slips=0",)}
"""Control -> what it changes in the demonstrations."""


@dataclass(frozen=True)
class Cell:
    """One benchmark with one seed."""

    benchmark: str
    recipe: Path
    seed: int
    changes: tuple[str, ...] = ()
    """Further keys of the recipe."""

    @property
    def run(self) -> str:
        """The run's name."""
        return f"curves-{self.benchmark}-{self.seed}" + ("-quick" if self.changes else "")

    @property
    def file(self) -> str:
        """How the names of its results begin."""
        return f"{self.benchmark}-seed{self.seed}"

    @property
    def keys(self) -> tuple[str, ...]:
        """What the command line changes in the recipe."""
        return (f"seed={self.seed}", f"name={self.run}", *self.changes)


def main() -> None:
    """Run what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=sorted(RECIPES), help="one benchmark")
    parser.add_argument("--seed", type=int, help="one seed")
    parser.add_argument("--controls", action="store_true", help="the cells' controls instead")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--report", action="store_true", help="run nothing")
    asked = parser.parse_args()
    results = RESULTS.with_name("results-quick") if asked.quick else RESULTS
    if not asked.report:
        for name, recipe in RECIPES.items():
            if asked.only in (None, name):
                for seed in SEEDS if asked.seed is None else (asked.seed,):
                    cell = Cell(name, recipe, seed, QUICK if asked.quick else ())
                    (measure_controls if asked.controls else measure)(cell, results)
    write_report(results, list(RECIPES), SEEDS)


def measure(cell: Cell, results: Path) -> None:
    """Train and score a cell, unless its result is there.

    Raises:
        SystemExit: a command failed; the same call goes on later.
    """
    path = results / f"{cell.file}.json"
    if _is_there(path):
        return
    # The test split is scored by `eval`, as it was sampled too.
    train = ["train", str(cell.recipe), *cell.keys, "data.test=null"]
    _command(train)
    scored, score = _scored(cell, f"run:{cell.run}@0", f"run:{cell.run}")
    result = result_of(cell, Path("runs") / cell.run, scored)
    _keep(path, result, [train, score])


def measure_controls(cell: Cell, results: Path) -> None:
    """Train and score a cell's controls, unless their result is there.

    Raises:
        SystemExit: the cell was not measured yet, or a command failed; the same call goes on later.
    """
    path = results / f"{cell.file}-controls.json"
    if _is_there(path):
        return
    measured = results / f"{cell.file}.json"
    if not measured.exists():
        raise SystemExit(f"{measured.name} is missing: a control takes as long as its cell took")
    told = json.loads(measured.read_text(encoding="utf-8"))
    epochs = epochs_of(told)
    keys = (*cell.keys, f"{WARM_START}.epochs={epochs}")
    tunings = [
        ["sft", str(cell.recipe), *keys, f"name={cell.run}-{name}", *changes]
        for name, changes in CONTROLS.items()
    ]
    for tuning in tunings:
        _command(tuning)
    scored, score = _scored(cell, *(f"run:{cell.run}-{name}-sft" for name in CONTROLS))
    base, score_base = _scored(cell, "base")
    last = told["test"]["last"]["sampled"]["rewards"]
    controls = {
        name: {
            **_scores(policy),
            "below_last": paired(policy["sampled"]["rewards"], last),
        }
        for name, policy in zip(CONTROLS, scored["policies"], strict=True)
    }
    result = {
        "benchmark": cell.benchmark,
        "seed": cell.seed,
        "epochs": epochs,
        "tasks": scored["tasks"],
        "controls": controls,
        "base": _scores(base["policies"][0]),
    }
    _keep(path, result, [*tunings, score, score_base])


def epochs_of(cell: dict[str, Any]) -> int:
    """How often a control goes through the demonstrations: in as many seconds as warm start and iterations took.

    Args:
        cell: the result of a cell whose warm start went through them once.
    """
    warm = sum(cell["warm_start_seconds"])
    return max(2, round((warm + iteration_seconds(cell)) / warm))


def paired(before: dict[str, float], after: dict[str, float]) -> dict[str, float]:
    """Mean of after minus before over the tasks of both, with its 95 % interval."""
    both = sorted(set(before) & set(after))
    found = paired_difference([before[one] for one in both], [after[one] for one in both])
    return dict(found._asdict())


def _is_there(path: Path) -> bool:
    if path.exists():
        print(f"{path.name} is there; delete it to measure it again")
    return path.exists()


def _scored(cell: Cell, *policies: str) -> tuple[dict[str, Any], list[str]]:
    """What `lightningrl eval` says of policies on the test split, and its arguments."""
    named = [word for policy in policies for word in ("--policy", policy)]
    score = ["eval", str(cell.recipe), *cell.keys, *named, "--json"]
    return json.loads(_command(score, capture=True)), score


def _keep(path: Path, result: dict[str, Any], commands: Sequence[Sequence[str]]) -> None:
    path.parent.mkdir(exist_ok=True)
    result["commands"] = [" ".join(["lightningrl", *_shown(one)]) for one in commands]
    write_text(path, json.dumps(result, indent=1) + "\n")


def result_of(cell: Cell, run: Path, scored: dict[str, Any]) -> dict[str, Any]:
    """What is kept of a cell.

    Args:
        cell: which.
        run: the run's folder.
        scored: what `lightningrl eval` printed.
    """
    origin = read_origin(run)
    lines = read_metrics(run / "metrics.jsonl")
    kept = ("train/", "val/", "timing/", "iteration", "drift/merged_share", "actor/log_prob_gap")
    return {
        "benchmark": cell.benchmark,
        "seed": cell.seed,
        "changes": list(cell.changes),
        "commit": origin.get("commit"),
        "started_at": origin.get("started_at"),
        "machine": f"{origin.get('machine')}, {_processor()}",
        "versions": origin.get("versions"),
        "warm_start_seconds": list(_warm_start_seconds(origin)),
        "lines": [
            {name: value for name, value in line.items() if name.startswith(kept)} for line in lines
        ],
        "test": {
            "tasks": scored["tasks"],
            "began": _scores(scored["policies"][0]),
            "last": _scores(scored["policies"][1]),
            "difference": scored["difference"],
        },
    }


def _scores(policy: dict[str, Any]) -> dict[str, Any]:
    return {
        how: {name: policy[how][name] for name in ("reward", "failed", "parts", "rewards")}
        for how in ("greedy", "sampled")
    }


def _warm_start_seconds(origin: dict[str, Any]) -> Iterator[float]:
    """Of each trained policy what its warm start took when it was made, on whichever machine that was."""
    for folder in origin.get("began_with", {}).values():
        record = Path(folder) / "warm_start.json"
        if record.is_file():
            yield float(json.loads(record.read_text(encoding="utf-8"))["seconds"])


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or "unknown processor"


def _shown(command: Sequence[str]) -> list[str]:
    """A command without the places of this machine."""
    root = str(HERE.parents[1]) + os.sep
    return [word.removeprefix(root) for word in command]


def _command(arguments: Sequence[str], *, capture: bool = False) -> str:
    print("lightningrl", *_shown(arguments), flush=True)
    done = subprocess.run(
        [sys.executable, "-m", "lightningrl.cli", *arguments],
        stdout=subprocess.PIPE if capture else None,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"it ended with {done.returncode}; the same command goes on")
    return done.stdout or ""


if __name__ == "__main__":
    main()
