"""Algorithms through the command line: a critic, and a guard that stops a run; dynamic sampling is in `test_faults.py`."""

from __future__ import annotations

from user_project import UNSCORED, Project

from lightningrl.cli.run_starts import read_starts

SHORT = {"iterations": 2, "tasks_per_iteration": 2, "group_size": 4}


def test_ppo_trains_a_critic_that_its_checkpoints_keep(project: Project) -> None:
    recipe = project.recipe(
        algorithm={**SHORT, "preset": "ppo", "group_size": 1, "tasks_per_iteration": 6},
        critic={"learning_rate": 1.0e-3, "epochs": 2, "warmup": 1},
        validation=UNSCORED,
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


def test_a_guard_stops_the_run_and_a_changed_one_lets_it_go_on(project: Project) -> None:
    recipe = project.recipe(
        algorithm=SHORT,
        validation=UNSCORED,
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
    assert [line["iteration"] for line in project.metrics()] == [0, 1, 2]
