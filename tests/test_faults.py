"""Invariants 1 and 2 under `kill -9`: nothing acknowledged is lost, nothing is counted twice.

A run is killed at a named phase of its trainer, or one of its processes at a seeded random moment; the
same command then goes on, and its folder must say what an undisturbed run's says.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
import time

import psutil
import pytest
from exact_run import check_exact, wait_for_metrics
from user_project import HALF_FLAT, UNSCORED, Project
from warm_process import WarmProcess

from lightningrl.cli.run_starts import read_starts
from lightningrl.schema import Mode
from lightningrl.store import RolloutQuery, open_store

RUNS = int(os.environ.get("LIGHTNINGRL_FAULT_RUNS", "1"))
"""Seeded runs per kind of victim."""

# The trainer with a display that kills it in iteration 2, where a phase begins or it collects more than so
# many rollouts.
DIES_AT = """
import asyncio, os, signal, sys
from pathlib import Path
from lightningrl.recipe import load_recipe
from lightningrl_verl.start import run
from lightningrl_verl.start.preflight import check

class Deadly(run.Display):
    deadly = False
    def begin(self, iteration):
        self.deadly = iteration == 2
        super().begin(iteration)
    def phase(self, name):
        if self.deadly and name == sys.argv[2]:
            os.kill(os.getpid(), signal.SIGKILL)
        super().phase(name)
    def rollouts(self, progress):
        if self.deadly and progress.total > int(sys.argv[3]):
            os.kill(os.getpid(), signal.SIGKILL)
        super().rollouts(progress)

run.Display = Deadly
asyncio.run(run.train_run(check(load_recipe(Path(sys.argv[1]))), ()))
"""


@pytest.mark.long
@pytest.mark.parametrize(
    "phases", [("checkpoint", "sync"), ("credit", "validate")], ids=", then ".join
)
def test_a_trainer_killed_at_one_phase_and_then_at_another_goes_on_exactly(
    project: Project, phases: tuple[str, str]
) -> None:
    """The second start makes the iteration anew that the first one did not end."""
    changes = {} if "validate" in phases else {"validation": UNSCORED}
    recipe = str(project.recipe(**changes))
    first, second = phases
    _dies(project, recipe, phase=first)
    _dies(project, recipe, phase=second)
    _goes_on(project, recipe)
    asyncio.run(check_exact(project))
    assert [one.how for one in read_starts(project.run)] == ["killed", "killed", "finished"]


def test_a_trainer_killed_while_it_collects_further_tasks_and_at_two_phases_goes_on_exactly(
    project: Project,
) -> None:
    """Under DAPO, which skips the groups without signal and replaces them. Each start makes the iteration anew that the
    one before did not end."""
    (project.folder / "half_flat.py").write_text(HALF_FLAT, encoding="utf-8")
    recipe = str(
        project.recipe(
            reward="half_flat:score",
            algorithm={
                "preset": "dapo", "iterations": 2, "tasks_per_iteration": 4, "group_size": 4,
                "further_tasks": 8,
            },
            validation=UNSCORED,
        )
    )  # fmt: skip
    # The iteration's own four tasks have 16 rollouts: more than these are of further tasks.
    _dies(project, recipe, rollouts=16)
    _dies(project, recipe, phase="checkpoint")
    _dies(project, recipe, phase="sync")
    _goes_on(project, recipe)
    asyncio.run(check_exact(project, iterations=2))
    asyncio.run(_check_skipped(project))
    assert [one.how for one in read_starts(project.run)] == [*["killed"] * 3, "finished"]


async def _check_skipped(project: Project) -> None:
    """The ledger skipped the groups without signal and no others, and the metrics say how many."""
    store = open_store(project.run / "store.db", read_only=True)
    try:
        ledger = await store.ledger("quick")
        rollouts = await store.rollouts(RolloutQuery(run="quick", mode=Mode.TRAIN))
    finally:
        await store.close()
    rewards: dict[str, set[float | None]] = {}
    for rollout in rollouts:
        rewards.setdefault(rollout.spec.group_id, set()).add(rollout.reward)
    skipped = {entry.group_id for entry in ledger if entry.status == "skipped"}
    assert skipped == {group for group, of_group in rewards.items() if len(of_group - {None}) < 2}
    assert {entry.group_id for entry in ledger} == set(rewards)
    for line in project.metrics()[1:]:
        of_iteration = [one for one in ledger if one.iteration == line["iteration"]]
        without = sum(one.group_id in skipped for one in of_iteration)
        assert line["train/groups_skipped"] == without
        assert len(of_iteration) == 4 + line["train/further_tasks"]
        assert line["train/groups"] == len(of_iteration) - without
        # Enough groups with signal, or no more tasks than the limit allows.
        assert line["train/groups"] == 4 or line["train/further_tasks"] == 8
        assert line["train/groups_without_signal"] == 0
        # Those that were left out count where a guard looks: here no rollout fails.
        assert line["train/flat_groups"] == without / len(of_iteration)
    assert any(line["train/further_tasks"] for line in project.metrics()[1:])


def _dies(project: Project, recipe: str, *, phase: str = "", rollouts: int = sys.maxsize) -> None:
    """Train until the trainer kills itself."""
    killed = project.program(DIES_AT, recipe, phase, str(rollouts), timeout=200)
    assert killed.returncode == -signal.SIGKILL


def _goes_on(project: Project, recipe: str) -> None:
    """Train by the same command to the end."""
    done = project.train(recipe)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("seed", range(RUNS))
@pytest.mark.parametrize(
    "victims", [("server", "runner"), pytest.param(("trainer",), marks=pytest.mark.long)],
    ids=" and ".join,
)  # fmt: skip
def test_a_run_with_killed_processes_ends_complete_and_exact(
    project: Project, victims: tuple[str, ...], seed: int
) -> None:
    recipe = str(project.recipe(validation=UNSCORED))
    choice = random.Random(f"{victims}/{seed}")
    with project.start_train(recipe) as process:
        try:
            wait_for_metrics(project, process)
            for victim in choice.sample(victims, len(victims)):
                time.sleep(choice.uniform(0.0, 2.0))
                _kill(process, victim)
            code = process.wait(timeout=200)
        finally:
            process.kill()
    if "trainer" in victims:
        assert code in (-signal.SIGKILL, 0)
        code = project.train(recipe).returncode
    assert code == 0, project.output
    asyncio.run(check_exact(project))


def _kill(process: WarmProcess, victim: str) -> None:
    if victim == "trainer":
        process.kill()
        return
    module = {"server": "serve", "runner": "lightningrl.runner.process"}[victim]
    try:
        for child in psutil.Process(process.pid).children(recursive=True):
            if module in child.cmdline():
                child.send_signal(signal.SIGKILL)
    except psutil.NoSuchProcess:
        pass  # the run was faster
