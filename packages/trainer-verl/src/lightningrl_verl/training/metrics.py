"""`metrics.jsonl`: each iteration once, in order, whatever was killed when.

Invariant: line i is iteration i. A torn last line, and lines after the checkpoint that a run resumes
from, are cut off before anything is appended. Every metric is defined in `docs/metrics.md`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

from lightningrl.errors import RunError
from lightningrl.machine.durable import write_text
from lightningrl.metrics import MetricLine, read_metrics
from lightningrl.recipe import Algorithm

Metrics = MetricLine
"""Name -> number (or `None` where it has no value this time)."""

SAMPLED_TOKENS = "train/sampled_tokens"
"""The metric that `algorithm.sampled_tokens` adds up."""


def has_ended(algorithm: Algorithm, lines: Sequence[Metrics]) -> bool:
    """Whether a run whose metrics these are has all that its recipe asks for: iterations, or sampled tokens."""
    if not lines:
        return False
    sampled = sum(line.get(SAMPLED_TOKENS) or 0 for line in lines)
    enough = algorithm.sampled_tokens is not None and sampled >= algorithm.sampled_tokens
    return enough or lines[-1]["iteration"] >= algorithm.iterations


class MetricsLog:
    """The metrics file of one run."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.lines: list[Metrics] = read_metrics(path) if path.exists() else []

    @property
    def last_iteration(self) -> int:
        """The iteration of the last line; -1 without one."""
        return self.lines[-1]["iteration"] if self.lines else -1

    @property
    def has_rewards(self) -> bool:
        """Whether there is a reward to draw: without a validation split iteration 0 has none."""
        return any(
            line.get(name) is not None
            for line in self.lines
            for name in ("train/reward", "val/reward")
        )

    def cut(self, *, after: int) -> None:
        """Drop lines of iterations > `after`, and a torn last line."""
        self.lines = [line for line in self.lines if line["iteration"] <= after]
        write_text(self._path, "".join(json.dumps(line) + "\n" for line in self.lines))

    def append(self, metrics: Metrics) -> None:
        """Write the line of the next iteration to disk.

        Raises:
            RunError: it isn't the next one.
        """
        if metrics["iteration"] != self.last_iteration + 1:
            raise RunError(
                f"metrics of iteration {metrics['iteration']} would follow those of"
                f" {self.last_iteration} in {str(self._path)!r}"
            )
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(metrics) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self.lines.append(metrics)
