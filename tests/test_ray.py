"""A run on two ranks in a real Ray, with two engine replicas, through `kill -9` and signals to its processes."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from exact_run import check_exact, still_alive, wait_for_metrics
from user_project import UNSCORED, Project
from uv_tool import UV_RUN
from warm_process import WarmProcess

# Ray's processes take their time to start where the machine has other work.
pytestmark = pytest.mark.timeout(900)

ITERATIONS = 2
ALGORITHM = {"iterations": ITERATIONS, "tasks_per_iteration": 4, "group_size": 4}
RAY: dict[str, Any] = {
    "cluster": "ray",
    "trainer": {"ranks": 2, "keep_checkpoints": 10},
    "engine": {"replicas": 2},
    "algorithm": ALGORITHM,
    "validation": UNSCORED,
}

RANKS: dict[str, Any] = {**RAY, "engine": {"replicas": 1}}
MANAGED: dict[str, Any] = {**RAY, "engine": {"replicas": 2, "placement": "colocated"}}

SECONDS = 400
"""Longest time of one start."""

RANK = "ray::RankWorker"
REPLICA = "lightningrl_verl.engine.replica"
RUNNER = "lightningrl.runner.process"

_Started = subprocess.Popen[bytes] | WarmProcess


def test_a_rank_is_killed_and_without_ray_a_replica_and_the_run_ends_complete_and_exact(
    project: Project,
) -> None:
    """First on two ranks with an engine in the driver, then on one rank with two engines in processes of their own."""
    recipe = str(project.recipe(**RANKS))
    with project.start_train(recipe) as first:
        wait_for_metrics(project, first, 2)
        ours = _family(first)
        _kill_one(first, RANK)
        assert first.wait(SECONDS) == 1
    assert "has died; the same command goes on" in " ".join(project.output.split())
    assert still_alive(ours) == []

    done = len(project.metrics())
    alone = {
        "trainer": {"keep_checkpoints": 10}, "engine": {"replicas": 2}, "validation": UNSCORED,
    }  # fmt: skip
    recipe = str(project.recipe(algorithm=ALGORITHM, **alone))
    with project.start_train(recipe) as second:
        _wait_for(second, REPLICA, project, count=2)
        _kill_one(second, REPLICA)
        assert second.wait(SECONDS) == 0, project.output
    assert "another number of ranks" in " ".join(project.output.split())
    assert done < ITERATIONS + 1
    asyncio.run(check_exact(project, iterations=ITERATIONS))
    for line in project.metrics():
        assert line["probe/max_abs_difference"] < 1e-3


@pytest.mark.long
def test_a_replica_beside_ranks_in_ray_is_killed_and_the_run_ends_complete_and_exact(
    project: Project,
) -> None:
    recipe = str(project.recipe(**RAY))
    with project.start("train", recipe) as process:
        _wait_for(process, REPLICA, project, count=2)
        ours = _family(process)
        _kill_one(process, REPLICA)
        assert process.wait(SECONDS) == 0, project.output
    assert still_alive(ours) == []
    asyncio.run(check_exact(project, iterations=ITERATIONS))


@pytest.mark.long
def test_a_runner_and_then_the_driver_are_killed_and_a_second_start_ends_complete_and_exact(
    project: Project,
) -> None:
    recipe = str(project.recipe(**RAY))
    with project.start("train", recipe) as first:
        wait_for_metrics(project, first)
        folder = _ray_folder(first)
        # The run itself starts it again.
        _kill_one(first, RUNNER)
        wait_for_metrics(project, first, 2)
        ours = _family(first)
        first.kill()
        assert first.wait(SECONDS) == -signal.SIGKILL
    done = project.cli("train", recipe, timeout=SECONDS)
    assert done.returncode == 0, done.stdout + done.stderr
    asyncio.run(check_exact(project, iterations=ITERATIONS))
    # Ray's agents try for a minute to say that it was killed.
    assert still_alive(ours, 120) == []
    assert not folder.exists()


@pytest.mark.long
def test_an_engine_that_verl_manages_is_killed_and_a_second_start_ends_complete_and_exact(
    project: Project,
) -> None:
    """They sleep while the ranks train. The driver is under `uv run`, where its ranks start in its environment all the same."""
    recipe = str(project.recipe(**MANAGED))
    with project.start("train", recipe, through=UV_RUN) as first:
        wait_for_metrics(project, first)
        ours = _family(first)
        _kill_one(first, "ray::TorchServer")
        assert first.wait(SECONDS) == 1
    assert "has died; the same command goes on" in " ".join(project.output.split())
    assert still_alive(ours) == []
    done = project.cli("train", recipe, timeout=SECONDS)
    assert done.returncode == 0, done.stdout + done.stderr
    asyncio.run(check_exact(project, iterations=ITERATIONS))
    for line in project.metrics():
        assert line["probe/max_abs_difference"] < 1e-3


@pytest.mark.long
def test_signals_in_the_midst_of_an_update_end_all_and_the_run_goes_on_with_another_number_of_ranks(
    project: Project,
) -> None:
    recipe = str(project.recipe(**RAY))
    # Ctrl-C reaches the whole process group, and a service manager's SIGTERM the driver alone.
    for lines, number in ((1, signal.SIGINT), (2, signal.SIGTERM)):
        with project.start("train", recipe, own_group=True) as process:
            wait_for_metrics(project, process, lines)
            ours, folder = _family(process), _ray_folder(process)
            _hold_an_update(process, project)
            if number is signal.SIGINT:
                os.killpg(process.pid, number)
            else:
                process.send_signal(number)
            assert process.wait(SECONDS) == 130, project.output
        assert still_alive(ours) == []
        assert not folder.exists()
        assert len(project.metrics()) == lines
    alone: dict[str, Any] = {"trainer": {"keep_checkpoints": 10}, "validation": UNSCORED}
    recipe = str(project.recipe(algorithm=ALGORITHM, **alone))
    done = project.cli("train", recipe)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "another number of ranks" in " ".join(done.stdout.split())
    asyncio.run(check_exact(project, iterations=ITERATIONS))


def _hold_an_update(process: subprocess.Popen[bytes], project: Project) -> None:
    """Stop one rank, and wait until the other one is in a call that can't end without it."""
    held, other = _named(process, RANK)
    held.suspend()
    # Ray puts the method that an actor is in into its title.
    while "share" not in " ".join(other.cmdline()):
        assert process.poll() is None, project.output
        time.sleep(0.05)


def _family(process: _Started) -> list[psutil.Process]:
    """All that a run has started, Ray's processes included."""
    family = psutil.Process(process.pid).children(recursive=True)
    assert any("raylet" in one.name() for one in family)
    return family


def _ray_folder(process: subprocess.Popen[bytes]) -> Path:
    """Where Ray keeps the run's sockets and logs."""
    (raylet,) = [one for one in _family(process) if one.name() == "raylet"]
    found = re.search(r"=(\S*/ray-lrl-[^/]+)/", " ".join(raylet.cmdline()))
    assert found is not None
    return Path(found[1])


def _named(process: _Started, words: str) -> list[psutil.Process]:
    found: list[psutil.Process] = []
    for one in psutil.Process(process.pid).children(recursive=True):
        try:
            if words in " ".join(one.cmdline()):
                found.append(one)
        except psutil.Error:
            continue
    return found


def _kill_one(process: _Started, words: str) -> None:
    os.kill(_named(process, words)[0].pid, signal.SIGKILL)


def _wait_for(process: _Started, words: str, project: Project, *, count: int) -> None:
    while len(_named(process, words)) < count:
        assert process.poll() is None, project.output
        time.sleep(0.1)
