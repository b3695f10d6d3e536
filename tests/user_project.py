"""A user's folder, small enough for a test: a tiny policy, a few rollouts, the real command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import yaml
from warm_process import CLI, WarmProcess

# What the recipes below name. The policy is hardly trained, so its answers are of every kind; the
# reward asks for something that it does by chance half of the time, so that groups have signal.
PROJECT = """
from lightningrl_bench_math.policy import tiny_spec

def spec():
    return {**tiny_spec(), "name": "quick", "updates": 40, "batch_size": 16}

def short(task, output, trace):
    return float(len(output) % 2 == 0)
"""

HALF_FLAT = """
def score(task, output, trace):
    return float(len(output) % 2) if len(task["question"]) % 2 else 0.25
"""
"""The module `half_flat`: a reward that is the same for half of the tasks, whatever the answer."""


UNSCORED = {"every": 9, "sampled": False}
"""A recipe's `validation` that scores as little as a run can, for tests that look at something else."""


class RunningProcess(Protocol):
    """A started command, in whichever process."""

    def poll(self) -> int | None:
        """Its exit status. `None`: it runs."""
        ...


@dataclass(frozen=True)
class Project:
    """A user's folder: a recipe, a module beside it, runs below it."""

    folder: Path
    environment: dict[str, str]
    name: str = "quick"
    """Of the run."""
    started: list[WarmProcess] = field(default_factory=list[WarmProcess])

    @property
    def run(self) -> Path:
        """The run's folder."""
        return self.folder / "runs" / self.name

    def recipe(self, **changes: Any) -> Path:
        """Write the recipe, with sections or keys replaced."""
        path = self.folder / "recipe.yaml"
        path.write_text(yaml.safe_dump({**_recipe(), **changes}), encoding="utf-8")
        return path

    def command(self, *arguments: str) -> list[str]:
        """A command line of ours."""
        return [sys.executable, "-m", "lightningrl.cli", *arguments]

    def cli(self, *arguments: str, timeout: float = 240) -> subprocess.CompletedProcess[str]:
        """Run a command of ours to its end."""
        return subprocess.run(
            self.command(*arguments), cwd=self.folder, env=self.environment, timeout=timeout,
            capture_output=True, text=True, check=False,
        )  # fmt: skip

    def start(
        self, *arguments: str, through: Sequence[str] = (), own_group: bool = False
    ) -> subprocess.Popen[bytes]:
        """Start a command of ours; `output` is what it printed.

        Args:
            arguments: of the command line.
            through: another command, which is given ours.
            own_group: in a process group of its own, as a shell starts what it hands the terminal.
        """
        with (self.folder / "output.txt").open("ab") as output:
            return subprocess.Popen(
                [*through, *self.command(*arguments)], cwd=self.folder, env=self.environment,
                stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
                process_group=0 if own_group else None,
            )  # fmt: skip

    def start_train(self, *arguments: str) -> WarmProcess:
        """Start `lightningrl train` in a warm process; `output` is what it printed."""
        return self.start_cli("train", *arguments)

    def start_cli(self, *arguments: str) -> WarmProcess:
        """Start a command of ours in a warm process; `output` is what it printed."""
        output = self.folder / "output.txt"
        return self._warm(CLI, arguments, output, output)

    def train(self, *arguments: str, timeout: float = 240) -> subprocess.CompletedProcess[str]:
        """Run `lightningrl train` to its end, in a warm process."""
        return self.program(CLI, "train", *arguments, timeout=timeout)

    def program(
        self, source: str, *arguments: str, timeout: float = 240
    ) -> subprocess.CompletedProcess[str]:
        """Run a Python program to its end, in a warm process."""
        with tempfile.TemporaryDirectory() as folder:
            stdout, stderr = Path(folder) / "stdout", Path(folder) / "stderr"
            process = self._warm(source, arguments, stdout, stderr)
            try:
                code = process.wait(timeout)
            finally:
                process.kill()
            texts = [one.read_text() if one.exists() else "" for one in (stdout, stderr)]
        return subprocess.CompletedProcess(list(arguments), code, *texts)

    def _warm(self, source: str, arguments: Sequence[str], *outputs: Path) -> WarmProcess:
        stdout, stderr = outputs
        process = WarmProcess(
            source, arguments, folder=self.folder, environment=self.environment,
            outputs=(stdout, stderr),
        )  # fmt: skip
        self.started.append(process)
        return process

    def end(self) -> None:
        """End all warm processes that are left, and what they have started."""
        for one in self.started:
            one.kill_all()

    @property
    def output(self) -> str:
        """What started commands printed, all of them."""
        return (self.folder / "output.txt").read_text(encoding="utf-8")

    def metrics(self) -> list[dict[str, Any]]:
        """The lines of the run's metrics."""
        text = (self.run / "metrics.jsonl").read_text(encoding="utf-8")
        return [json.loads(line) for line in text.splitlines()]


def _recipe() -> dict[str, Any]:
    source = "lightningrl_bench_math.tasks:generate"
    return {
        "name": "quick",
        "agent": "lightningrl_bench_math.agent:solve",
        "reward": "quick_project:short",
        "data": {
            "train": {"source": source, "args": {"split": "train", "count": 40, "seed": 1}},
            "val": {"source": source, "args": {"split": "val", "count": 4, "seed": 2}},
            "test": {"source": source, "args": {"split": "test", "count": 4, "seed": 3}},
        },
        "policies": {
            "policy": {"tiny": "quick_project:spec", "tool_parser": "compact", "max_model_len": 256}
        },
        "sampling": {"train": {"max_tokens": 16}, "val": {"temperature": 0.0, "max_tokens": 16}},
        "step_rewards": [{"rule": "length", "weight": -0.1, "args": {"limit": 4}}],
        "algorithm": {"iterations": 3, "tasks_per_iteration": 4, "group_size": 4},
        # So small a policy may unlearn its tool within a few updates of so few rollouts.
        "guards": {"min_tool_calls": None},
        "optimiser": {"learning_rate": 1.0e-3},
        "validation": {"every": 2},
        "trainer": {"threads": 1, "keep_checkpoints": 10},
        "runner": {"concurrency": 16, "timeout_seconds": 30},
    }


def make_project(folder: Path, cache: Path) -> Project:
    """A project in a folder."""
    (folder / "quick_project.py").write_text(PROJECT, encoding="utf-8")
    environment = {**os.environ, "LIGHTNINGRL_CACHE": str(cache), "OMP_NUM_THREADS": "1"}
    environment.pop("OPENAI_API_KEY", None)
    return Project(folder, environment)
