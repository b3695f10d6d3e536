"""Invariants 1 and 2 under `kill -9`: nothing acknowledged is lost, nothing is counted twice.

Each run kills one of its processes, or all of them, at seeded random moments, until it ends; then its
folder must say what an undisturbed run's says, but for times.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
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


@pytest.mark.parametrize("seed", range(RUNS))
@pytest.mark.parametrize("victim", ["trainer", "server", "runner"])
async def test_a_killed_run_ends_complete_and_exact(
    project: Project, victim: str, seed: int
) -> None:
    recipe = str(project.recipe())
    random_moment = random.Random(f"{victim}/{seed}")
    kills = 0
    while True:
        with project.start("train", recipe) as process:
            try:
                if kills < 2 and _reached_a_moment(project, process, random_moment):
                    _kill(process, victim)
                    kills += 1
                code = process.wait(timeout=200)
            finally:
                process.kill()
        if code != -signal.SIGKILL:
            break
    assert code == 0, project.output
    assert kills > 0
    await _check(project)


def _reached_a_moment(
    project: Project, process: subprocess.Popen[bytes], chance: random.Random
) -> bool:
    """Wait until the run has its first metrics, then a random while; False if it ended before."""
    metrics = project.run / "metrics.jsonl"
    while not metrics.exists() or not metrics.read_text():
        if process.poll() is not None:
            return False
        time.sleep(0.05)
    deadline = time.monotonic() + chance.uniform(0.0, 6.0)
    while time.monotonic() < deadline:
        if process.poll() is not None:
            return False
        time.sleep(0.02)
    return True


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
        assert all(rollout.state in TERMINAL for rollout in rollouts)
        ledger = await store.ledger("quick")
        assert all(entry.committed for entry in ledger)
        taken = [one for entry in ledger for one in entry.rollout_ids]
        assert len(taken) == len(set(taken))
        trained = [rollout for rollout in rollouts if rollout.spec.mode is Mode.TRAIN]
        # Three iterations of four tasks with four rollouts each; none failed, so all are taken once.
        assert len(trained) == 3 * 4 * 4
        assert set(taken) <= {rollout.id for rollout in trained}
        assert sum(line["train/rollouts"] for line in lines[1:]) == len(taken)
    finally:
        await store.close()
