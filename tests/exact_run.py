"""What the folder of a finished run must say, whatever was killed on the way."""

from __future__ import annotations

import time

import psutil
from user_project import Project, RunningProcess

from lightningrl.schema import TERMINAL, Mode
from lightningrl.store import RolloutQuery, open_store
from lightningrl_verl.start.folder import RunFolder
from lightningrl_verl.training.checkpoint import Checkpoints


def wait_for_metrics(project: Project, process: RunningProcess, lines: int = 1) -> None:
    """Wait until the metrics have that many lines; the first is of iteration 0."""
    metrics = project.run / "metrics.jsonl"
    while not metrics.exists() or metrics.read_text().count("\n") < lines:
        assert process.poll() is None, project.output
        time.sleep(0.05)


async def check_exact(project: Project, *, iterations: int = 3) -> None:
    """A complete curve, and a ledger with every rollout at most once; nothing runs any more."""
    numbers = list(range(iterations + 1))
    lines = project.metrics()
    assert [line["iteration"] for line in lines] == numbers
    assert "test/reward" in lines[-1]
    newest = Checkpoints(RunFolder(project.run).checkpoints, keep=10).newest()
    assert newest is not None
    assert [iteration for iteration, _ in newest[1].history] == numbers[1:]
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
    # Of four tasks, and those in place of groups without signal, with four rollouts each.
    tasks = sum(4 + line.get("train/further_tasks", 0) for line in lines[1:])
    assert len(trained) == tasks * 4
    assert set(taken) <= trained
    assert sum(line["train/rollouts"] for line in lines[1:]) == len(taken)
    assert left_over(project) == []


def left_over(project: Project) -> list[str]:
    """Processes of the run that are still there after the time that they have to end."""
    names = [str(project.folder), f"runs/{project.name}"]
    found: list[psutil.Process] = []
    for process in psutil.process_iter():
        try:
            words = " ".join(process.cmdline())
            if process.cwd() == str(project.folder) and any(name in words for name in names):
                found.append(process)
        except psutil.Error:
            continue
    return still_alive(found)


def still_alive(processes: list[psutil.Process], seconds: float = 30) -> list[str]:
    """The commands of those that have not ended after the time that they have to."""
    _, alive = psutil.wait_procs(processes, timeout=seconds)
    return [" ".join(process.cmdline()) for process in alive]
