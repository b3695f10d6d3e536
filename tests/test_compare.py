"""`lightningrl compare` with real runs: one start, equal tokens, killed and gone on with."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from user_project import Project

OWN = """
def half(groups, scale=1.0):
    return [
        [[scale * (trace.reward - 0.5)] * len(trace.transitions) for trace in group.traces]
        for group in groups
    ]
"""
TOKENS = 150


def _lines(folder: Path) -> list[dict[str, Any]]:
    path = folder / "metrics.jsonl"
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.long
def test_a_comparison_that_was_killed_goes_on_and_ends_at_equal_tokens(project: Project) -> None:
    (project.folder / "mine.py").write_text(OWN, encoding="utf-8")
    algorithm = {"iterations": 6, "tasks_per_iteration": 2, "group_size": 4}
    recipe = str(project.recipe(algorithm=algorithm))
    arguments = [recipe, "--credit", "broadcast,mine:half scale=2", "--tokens", str(TOKENS)]
    folder = project.folder / "runs" / "quick-compare"
    first = folder / "broadcast-seed0"

    started = project.start("compare", *arguments, "--seeds", "2", own_group=True)
    while started.poll() is None and len(_lines(first)) < 2:
        time.sleep(0.1)
    started.terminate()
    assert started.wait(120) == 130, project.output
    assert "The same command goes on" in project.output
    stopped = _lines(first)
    assert stopped

    done = project.cli("compare", *arguments, "--seeds", "2", timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert _lines(first)[: len(stopped)] == stopped
    told = json.loads((folder / "compare.json").read_text(encoding="utf-8"))
    assert {(one["method"], one["seed"]) for one in told["cells"]} == {
        (method, seed) for method in ("broadcast", "mine:half scale=2") for seed in (0, 1)
    }
    starts = set()
    for cell in sorted(folder.glob("*-seed?")):
        lines = _lines(cell)
        sampled = [line.get("train/sampled_tokens", 0) for line in lines]
        # With the last iteration, and not before it.
        assert sum(sampled[:-1]) < TOKENS <= sum(sampled)
        assert lines[-1]["test/reward"] is not None
        origin = json.loads((cell / "run.json").read_text(encoding="utf-8"))
        starts.add(json.dumps(origin["base_weights"]))
    assert len(starts) == 1
    by_cell = {(one["method"], one["seed"]): one["score"] for one in told["cells"]}
    apart = [by_cell["mine:half scale=2", seed] - by_cell["broadcast", seed] for seed in (0, 1)]
    found = told["differences"]["mine:half scale=2"]
    assert found["mean"] == pytest.approx(sum(apart) / 2, abs=1e-6)
    assert found["low"] <= found["mean"] <= found["high"]
    assert "could see" in done.stdout

    # Nothing is run again, and nothing of another comparison is taken for its own.
    before = {path: path.stat().st_mtime_ns for path in folder.glob("*/metrics.jsonl")}
    again = project.cli("compare", *arguments, "--seeds", "2")
    assert again.returncode == 0, again.stderr
    assert {path: path.stat().st_mtime_ns for path in folder.glob("*/metrics.jsonl")} == before
    other = project.cli("compare", *arguments, "optimiser.learning_rate=0.1", "--seeds", "2")
    assert other.returncode == 2
    assert "optimiser.learning_rate" in other.stderr
