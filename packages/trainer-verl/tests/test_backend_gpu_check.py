"""The script for a GPU machine, tried out on the CPU with a tiny model."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]

TRAINED = [
    ("tiny log-probs, even rows", "throughput"),
    ("tiny log-probs, mixed rows", "mfu"),
    ("tiny update, even rows", "mfu"),
    ("tiny update, mixed rows, no recomputation", "throughput"),
    ("tiny update, merged", "duration"),
    ("tiny update, a row per call", "duration"),
    ("tiny answers, 4 at once", "throughput"),
    ("tiny weight swap", "duration"),
]
"""Figures that depend on the machine, so that only their being there is tested."""


def gpu_check(output: Path, *arguments: str, **environment: str):
    return subprocess.run(
        [
            *(str(ROOT / "scripts" / "gpu_check.sh"), "--device", "cpu", "--tiny"),
            *("--output", str(output), *arguments),
        ],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHON": sys.executable, **environment},
    )


@pytest.mark.long
def test_the_gpu_check_runs_on_a_cpu_and_reports_every_part_and_which_failed(tmp_path: Path):
    """A phase of the loop may last 0.1 s here, so that the first one, its imports, is broken off; and vLLM is absent."""
    done = gpu_check(
        *(tmp_path, "--loop", "1", "--phase-seconds", "0.1", "--vllm", "no-such-vllm"),
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1:] == ["failed: loop, loop with vLLM"], done.stderr
    assert "the phase 'start' lasted longer than 0.1 s" in done.stderr
    assert "vLLM is not installed here: no command 'no-such-vllm'" in done.stderr
    (printed,) = tmp_path.glob("loop-*/train.txt")
    assert "most recent call first" in printed.read_text()
    rows = json.loads((tmp_path / "gpu.json").read_text())
    measured = {(row["case"], row["metric"]): row["value"] for row in rows}
    missing = [case for case, metric in measured if metric == "missing"]
    assert missing == ["loop", "loop with vLLM"]
    for figure in TRAINED:
        assert measured[figure] > 0, figure
    for case in ("engine fp32", "trainer fp32", "tiny weight swap"):
        assert measured[case, "max log-prob difference"] <= 1e-4
    # 2 conversations of 3 turns: prompts of 8 tokens, then 4 sampled and 4 read in each turn but the last.
    assert measured["tiny update, merged", "rows"] == 2
    assert measured["tiny update, merged", "tokens"] == 2 * (8 + 4 * 5)
    assert measured["tiny update, a row per call", "rows"] == 6
    assert measured["tiny update, a row per call", "tokens"] == 2 * (12 + 20 + 28)
    assert measured["tiny update, a row per call", "trained tokens"] == 2 * 3 * 4
    assert measured["prefix merging", "difference of gradient norms"] <= 1e-4
    about = json.loads((tmp_path / "gpu.about.json").read_text())
    assert about["device"] == "cpu"
    assert "tiny weight swap" in done.stdout


@pytest.mark.long
def test_the_loop_says_where_it_stands_and_keeps_its_logs(tmp_path: Path):
    done = gpu_check(
        *(tmp_path / "output", "--only", "loop", "--loop", "1"),
        LIGHTNINGRL_CACHE=str(tmp_path / "cache"),
    )
    assert done.returncode == 0, done.stderr
    for phase in ("0: open engines", "1: collect", "1: update", "1: sync", "1: ended"):
        assert f"iteration {phase}" in done.stderr
    (run,) = (tmp_path / "output").glob("loop-*/run")
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 2
    assert {"server.log", "runner.log", "trainer.log"} <= {one.name for one in run.glob("logs/*")}
    rows = json.loads((tmp_path / "output" / "gpu.json").read_text())
    measured = {row["metric"]: row["value"] for row in rows if row["case"].startswith("math")}
    assert measured["probe/max_abs_difference"] <= 1e-4
    assert measured["timing/update_seconds"] > 0
