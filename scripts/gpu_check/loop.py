"""The whole loop on the device: the math benchmark's agent, gateway, engine, trainer, in their processes."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from report import CheckFailed, Report
from vllm_server import served
from watched import watch

_HERE = Path(__file__).parent
_RECIPE = _HERE.parents[1] / "benchmarks" / "math" / "recipes" / "cpu.yaml"
_SMALL = (
    *("algorithm.tasks_per_iteration=4", "algorithm.group_size=4", "trainer.threads=1"),
    *("data.val.limit=8", "data.test.limit=8"),
)
"""A run to try this script out."""
_ANY_POLICY = ("reward=loop_policy:even_length", "guards.min_tool_calls=null")
"""For one that calls no tools and solves nothing, but is to be trained."""


@dataclass(frozen=True)
class Loop:
    """A run of the math benchmark, and for how long a phase of it may last."""

    folder: Path
    """A new one: of the run, of its processes' logs, and of what they print."""
    iterations: int
    phase_seconds: float
    small: bool
    """Few rollouts, and a policy that is hardly trained."""


def measure_loop(report: Report, loop: Loop) -> None:
    """Train the benchmark's tiny policy on the device, served by the embedded engine.

    Raises:
        CheckFailed: the run failed, or a phase of it lasted too long.
    """
    settings = [_policy(loop), *_ANY_POLICY] if loop.small else []
    _train(report, loop, "math benchmark", [*settings, f"trainer.device={report.device}"])


def measure_vllm_loop(report: Report, vllm: Sequence[str], loop: Loop) -> None:
    """Train one in a shape that vLLM takes, served by vLLM.

    The reward is another one, for vLLM has no parser for the tiny policies' tool calls, which agents get as text.

    Args:
        report: what is measured goes here.
        vllm: its command line.
        loop: the run.

    Raises:
        CheckFailed: vLLM does not come up, the run failed, or a phase of it lasted too long.
    """
    model = loop.folder / "model"
    _run(loop, "tiny", [_policy(loop)], "--out", str(model))
    dtype = "bf16" if report.device == "cuda" else "fp32"
    with served(vllm, model, report.device, loop.folder, loop.phase_seconds) as url:
        settings = [
            *("policies.policy.tiny=null", f"policies.policy.model={model}"),
            *("policies.policy.tool_parser=none", f"policies.policy.vllm={{urls: [{url!r}]}}"),
            *(f"trainer.device={report.device}", f"trainer.dtype={dtype}", *_ANY_POLICY),
        ]
        _train(report, loop, "math benchmark with vLLM", settings)


def _policy(loop: Loop) -> str:
    return f"policies.policy.tiny=loop_policy:{'quick' if loop.small else 'wide'}"


def _train(report: Report, loop: Loop, case: str, settings: Sequence[str]) -> None:
    run = loop.folder / "run"
    every = [f"algorithm.iterations={loop.iterations}", f"validation.every={loop.iterations}"]
    try:
        _run(loop, "train", [f"folder={run}", *every, *settings, *(_SMALL if loop.small else ())])
    finally:
        # What is large and says nothing of how the run went.
        for name in ("checkpoints", "engines"):
            shutil.rmtree(run / name, ignore_errors=True)
        updates = _add_figures(
            report, f"{case}, {loop.iterations} iterations", run / "metrics.jsonl"
        )
    if not updates:
        raise CheckFailed("no iteration had an update: no group of rollouts had unequal rewards")


def _run(loop: Loop, name: str, settings: Sequence[str], *options: str) -> None:
    """Run a command of ours on the benchmark's recipe."""
    watch(
        [sys.executable, "-m", "lightningrl.cli", name, str(_RECIPE), *settings, *options],
        output=loop.folder / f"{name}.txt",
        phases=loop.folder / "run" / "logs" / "trainer.log",
        logs=loop.folder / "run" / "logs",
        seconds=loop.phase_seconds,
        # Where `loop_policy` is.
        python_path=_HERE,
    )


def _add_figures(report: Report, case: str, metrics: Path) -> int:
    """Those of the iterations that ended; return how many of them had an update."""
    if not metrics.exists():
        return 0
    lines = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    rewards = [line["val/reward"] for line in lines if "val/reward" in line]
    trained = [line for line in lines[1:] if "probe/max_abs_difference" in line]
    report.add(case, "val/reward before", "reward", rewards[:1])
    if not trained:
        return 0
    report.add(case, "val/reward after", "reward", rewards[-1:])
    for name in ("timing/collect_seconds", "timing/update_seconds", "timing/sync_seconds"):
        report.add(case, name, "s", [line[name] for line in trained])
    gaps = [line["probe/max_abs_difference"] for line in trained]
    report.add(case, "probe/max_abs_difference", "nats", [max(gaps)])
    return len(trained)
