"""Algorithms through the command line: a critic, dynamic sampling, and a guard that stops a run."""

from __future__ import annotations

import asyncio

import pytest
from user_project import HALF_FLAT, Project

from lightningrl.cli.run_starts import read_starts
from lightningrl.store import open_store

SHORT = {"iterations": 2, "tasks_per_iteration": 4, "group_size": 4}
NOT_SCORED = {"every": 9, "sampled": False}


@pytest.fixture
def said(project: Project) -> str:
    """A reward that is the same for half of the tasks, whatever the answer."""
    (project.folder / "half_flat.py").write_text(HALF_FLAT, encoding="utf-8")
    return "half_flat:score"


def test_ppo_trains_a_critic_that_its_checkpoints_keep(project: Project) -> None:
    recipe = project.recipe(
        algorithm={**SHORT, "preset": "ppo", "group_size": 1, "tasks_per_iteration": 12},
        critic={"learning_rate": 1.0e-3, "epochs": 2, "warmup": 1},
        validation=NOT_SCORED,
    )
    done = project.train(str(recipe))
    assert done.returncode == 0, done.stdout + done.stderr
    first, second = project.metrics()[1:]
    # The head begins at 0, so the first values are all 0.
    assert first["credit/value_mean"] == 0
    assert second["credit/value_mean"] != 0
    assert first["critic/vf_loss"] > 0
    # One iteration of warm-up: the policy waits.
    assert "actor/loss" not in first
    assert second["actor/grad_norm"] > 0
    assert [line["policy_version"] for line in (first, second)] == [0, 1]
    assert (project.run / "checkpoints" / "iteration-000002" / "critic").is_dir()


def test_groups_without_signal_are_skipped_and_replaced(project: Project, said: str) -> None:
    recipe = project.recipe(
        reward=said,
        algorithm={**SHORT, "preset": "dapo", "further_tasks": 8},
        validation=NOT_SCORED,
    )
    done = project.train(str(recipe))
    assert done.returncode == 0, done.stdout + done.stderr
    ledger = asyncio.run(_ledger(project))
    for line in project.metrics()[1:]:
        of_iteration = [one for one in ledger if one.iteration == line["iteration"]]
        skipped = [one for one in of_iteration if one.status == "skipped"]
        assert line["train/groups_skipped"] == len(skipped)
        assert line["train/further_tasks"] == len(of_iteration) - 4
        assert line["train/groups"] == len(of_iteration) - len(skipped)
        # Enough groups with signal, or no more tasks than the limit allows.
        assert line["train/groups"] == 4 or line["train/further_tasks"] == 8
        assert line["train/groups_without_signal"] == 0
        # Those that were left out count where a guard looks: here no rollout fails.
        assert line["train/flat_groups"] == len(skipped) / len(of_iteration)
    assert any(line["train/further_tasks"] for line in project.metrics()[1:])


async def _ledger(project: Project):
    store = open_store(project.run / "store.db", read_only=True)
    try:
        return await store.ledger("quick")
    finally:
        await store.close()


def test_a_guard_stops_the_run_and_a_changed_one_lets_it_go_on(project: Project) -> None:
    recipe = project.recipe(
        algorithm={**SHORT, "iterations": 3},
        validation=NOT_SCORED,
        guards={"patience": 1, "min_entropy": 1000.0, "min_tool_calls": None},
    )
    stopped = project.train(str(recipe))
    assert stopped.returncode == 3, stopped.stdout + stopped.stderr
    assert "stopped after iteration 1: train/entropy was" in stopped.stderr
    assert "guards.min_entropy=null" in stopped.stderr
    (start,) = read_starts(project.run)
    assert start.said.startswith("guard at 20")
    assert start.why in stopped.stderr
    assert [line["iteration"] for line in project.metrics()] == [0, 1]
    # The same again stops again, and trains nothing.
    assert project.train(str(recipe)).returncode == 3
    assert [line["iteration"] for line in project.metrics()] == [0, 1]
    done = project.train(str(recipe), "guards.min_entropy=null")
    assert done.returncode == 0, done.stdout + done.stderr
    assert [line["iteration"] for line in project.metrics()] == [0, 1, 2, 3]
