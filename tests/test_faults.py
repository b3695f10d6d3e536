"""Invariants 1 and 2 under `kill -9`: nothing acknowledged is lost, nothing is counted twice.

A run is killed at a named phase of its trainer, or one of its processes at a seeded random moment; the
same command then goes on, and its folder must say what an undisturbed run's says.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
import time

import psutil
import pytest
from user_project import Project

from lightningrl.schema import TERMINAL, Mode
from lightningrl.store import RolloutQuery, open_store
from lightningrl_verl.training.checkpoint import Checkpoints
from lightningrl_verl.training.folder import RunFolder

RUNS = int(os.environ.get("LIGHTNINGRL_FAULT_RUNS", "1"))
"""Seeded runs per kind of victim."""

# The trainer with a display that kills it where a phase of iteration 2 begins.
_DIES_AT = """
import asyncio, os, signal, sys
from pathlib import Path
from lightningrl.recipe import load_recipe
from lightningrl_verl.training import run
from lightningrl_verl.training.preflight import check

class Deadly(run.Display):
    def begin(self, iteration):
        self.deadly = iteration == 2
        super().begin(iteration)
    def phase(self, name):
        if self.deadly and name == sys.argv[2]:
            os.kill(os.getpid(), signal.SIGKILL)
        super().phase(name)

run.Display = Deadly
asyncio.run(run.train_run(check(load_recipe(Path(sys.argv[1]))), ()))
"""


@pytest.mark.parametrize(
    "phase",
    [
        pytest.param("credit", marks=pytest.mark.long),
        "checkpoint",
        "sync",
        pytest.param("validate", marks=pytest.mark.long),
    ],
)
def test_a_trainer_killed_at_a_phase_goes_on_exactly(project: Project, phase: str) -> None:
    recipe = str(project.recipe())
    killed = subprocess.run(
        [sys.executable, "-c", _DIES_AT, recipe, phase],
        cwd=project.folder, env=project.environment, check=False, timeout=200,
    )  # fmt: skip
    assert killed.returncode == -signal.SIGKILL
    done = project.cli("train", recipe)
    assert done.returncode == 0, done.stdout + done.stderr
    asyncio.run(_check(project))


@pytest.mark.parametrize("seed", range(RUNS))
@pytest.mark.parametrize(
    "victim", ["server", "runner", pytest.param("trainer", marks=pytest.mark.long)]
)
def test_a_run_with_killed_processes_ends_complete_and_exact(
    project: Project, victim: str, seed: int
) -> None:
    recipe = str(project.recipe())
    moment = random.Random(f"{victim}/{seed}").uniform(0.0, 2.0)
    with project.start("train", recipe) as process:
        try:
            _wait_for_metrics(project, process)
            time.sleep(moment)
            _kill(process, victim)
            code = process.wait(timeout=200)
        finally:
            process.kill()
    if victim == "trainer":
        assert code in (-signal.SIGKILL, 0)
        code = project.cli("train", recipe).returncode
    assert code == 0, project.output
    asyncio.run(_check(project))


def _wait_for_metrics(project: Project, process: subprocess.Popen[bytes]) -> None:
    """Wait until iteration 0 is scored."""
    metrics = project.run / "metrics.jsonl"
    while not metrics.exists() or not metrics.read_text():
        assert process.poll() is None, project.output
        time.sleep(0.05)


def _kill(process: subprocess.Popen[bytes], victim: str) -> None:
    if victim == "trainer":
        process.kill()
        return
    module = {"server": "serve", "runner": "lightningrl.runner.process"}[victim]
    for child in psutil.Process(process.pid).children(recursive=True):
        if module in child.cmdline():
            child.send_signal(signal.SIGKILL)


async def _check(project: Project) -> None:
    lines = project.metrics()
    assert [line["iteration"] for line in lines] == [0, 1, 2, 3]
    assert "test/reward" in lines[-1]
    newest = Checkpoints(RunFolder(project.run).checkpoints, keep=10).newest()
    assert newest is not None
    assert [iteration for iteration, _ in newest[1].history] == [1, 2, 3]
    store = open_store(project.run / "store.db", read_only=True)
    try:
        rollouts = await store.rollouts(RolloutQuery(run="quick"))
        ledger = await store.ledger("quick")
    finally:
        await store.close()
    assert all(rollout.state in TERMINAL for rollout in rollouts)
    assert all(entry.committed for entry in ledger)
    taken = [one for entry in ledger for one in entry.rollout_ids]
    assert len(taken) == len(set(taken))
    trained = {one.id for one in rollouts if one.spec.mode is Mode.TRAIN}
    # Three iterations of four tasks with four rollouts each.
    assert len(trained) == 3 * 4 * 4
    assert set(taken) <= trained
    assert sum(line["train/rollouts"] for line in lines[1:]) == len(taken)
    assert _left_over(project) == []


def _left_over(project: Project) -> list[str]:
    """Processes of the run that are still there after the time that they have to end."""
    names = [str(project.folder), "runs/quick"]
    found: list[psutil.Process] = []
    for process in psutil.process_iter():
        try:
            words = " ".join(process.cmdline())
            if process.cwd() == str(project.folder) and any(name in words for name in names):
                found.append(process)
        except psutil.Error:
            continue
    _, alive = psutil.wait_procs(found, timeout=30)
    return [" ".join(process.cmdline()) for process in alive]
