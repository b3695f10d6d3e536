"""What the loop writes into a run's folder; `start/folder.py` says what else is there."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class RunFiles:
    """The loop's files of one run."""

    path: Path
    """The run's folder."""

    @property
    def metrics(self) -> Path:
        """One line per iteration."""
        return self.path / "metrics.jsonl"

    @property
    def curve(self) -> Path:
        """The reward curve."""
        return self.path / "curve.png"

    @property
    def drift(self) -> Path:
        """What did not merge."""
        return self.path / "drift.json"

    def rollout_drift(self, iteration: int) -> Path:
        """What did not merge in an iteration, a line per rollout and policy."""
        return self.path / "drift" / f"iteration-{iteration:06d}.jsonl"

    @property
    def checkpoints(self) -> Path:
        """One folder per kept iteration."""
        return self.path / "checkpoints"
