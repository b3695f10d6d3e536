"""The script for a GPU machine, tried out on the CPU with a tiny model."""

import json
import os
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[3]


def test_the_gpu_check_runs_on_a_cpu_and_reports_every_part(tmp_path: Path):
    output = tmp_path / "rows.json"
    arguments = ["--device", "cpu", "--tiny", "--output", str(output)]
    done = subprocess.run(
        [str(ROOT / "scripts" / "gpu_check.sh"), *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    rows = json.loads(output.read_text())
    measured = {(row["case"], row["metric"]): row["value"] for row in rows}
    assert measured.keys() == {
        ("engine fp32", "max_log_prob_difference"),
        ("trainer fp32", "max_log_prob_difference"),
        ("trainer bf16", "max_log_prob_difference"),
        ("generation", "throughput"),
        ("generation", "max_log_prob_difference"),
        ("log_probs", "throughput"),
        ("update", "throughput"),
        ("weight_swap", "duration"),
        ("weight_swap", "max_log_prob_difference"),
    }
    assert measured["engine fp32", "max_log_prob_difference"] <= 1e-4
    assert measured["trainer fp32", "max_log_prob_difference"] <= 1e-4
    assert measured["weight_swap", "max_log_prob_difference"] <= 1e-4
    assert "weight_swap" in done.stdout
