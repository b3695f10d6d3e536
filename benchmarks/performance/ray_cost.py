"""What Ray costs on this machine: `make bench-ray`.

A run of the math benchmark, one iteration, on one process and then on Ray with two ranks and two engine
replicas: the time until the ranks can load a policy, and the peak memory of all its processes together
(proportional set size, so that shared pages count once). The tiny policy is built or found in the cache first.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from harness.results import OURS, Results

_RESULTS = Path(__file__).parent / "results"
_RECIPE = Path(__file__).parents[1] / "math" / "recipes" / "cpu.yaml"
_PAUSE_SECONDS = 0.5
_CASES = {
    "one process": (),
    "Ray, 2 ranks, 2 replicas": ("cluster=ray", "trainer.ranks=2", "engine.replicas=2"),
}

# The driver alone: what `lightningrl train` does before it loads a policy.
_START = """
import time
begun = time.monotonic()
from lightningrl.recipe import Trainer
from lightningrl_verl.cluster.ray_ranks import RayRanks
ranks = RayRanks(Trainer(ranks=2), None)
print(time.monotonic() - begun)
ranks.close()
"""


def start_seconds(rounds: int) -> list[float]:
    """From an interpreter without torch to two ranks that answer."""
    return [
        float(
            subprocess.run(
                [sys.executable, "-c", _START], check=True, capture_output=True, text=True
            ).stdout
        )
        for _ in range(rounds)
    ]


def run(case: str, folder: Path, results: Results) -> None:
    """Train, and watch the memory of the run's processes."""
    command = [
        *(
            sys.executable,
            "-m",
            "lightningrl.cli",
            "train",
            str(_RECIPE),
            f"folder={folder / 'run'}",
        ),
        *("algorithm.iterations=1", "data.val.limit=16", "data.test.limit=16", *_CASES[case]),
    ]
    begun = time.monotonic()
    peak, processes = 0, 0
    with (folder / "output.txt").open("wb") as output:
        training = subprocess.Popen(command, stdout=output, stderr=output)
        while training.poll() is None:
            there = _memory(training.pid)
            peak, processes = max(peak, sum(there)), max(processes, len(there))
            time.sleep(_PAUSE_SECONDS)
    if training.returncode:
        raise SystemExit((folder / "output.txt").read_text())
    results.add(case, OURS, "peak_memory", [peak / 2**30], "GiB")
    results.add(case, OURS, "processes", [float(processes)], "processes")
    results.add(case, OURS, "whole_run", [time.monotonic() - begun], "s")


def _memory(pid: int) -> list[int]:
    """Bytes of each process of the family that `pid` heads."""
    found: list[int] = []
    try:
        family = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return found
    for one in family:
        try:
            found.append(one.memory_full_info().pss)
        except psutil.Error:
            continue
    return found


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=1, help="starts of Ray alone")
    parser.add_argument("--results", type=Path, default=_RESULTS, help="folder of the results")
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    subprocess.run([sys.executable, "-m", "lightningrl.cli", "tiny", str(_RECIPE)], check=True)
    results = Results("ray_cost", options.results)
    results.add("Ray, 2 ranks", OURS, "start", start_seconds(options.rounds), "s")
    for case in _CASES:
        with tempfile.TemporaryDirectory(prefix="bench-ray-") as folder:
            run(case, Path(folder), results)
    results.show()
    print(f"written to {results.write()}")


if __name__ == "__main__":
    main()
