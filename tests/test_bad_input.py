"""What goes wrong for a user: each gets a clear message and an exit code, and nothing is lost."""

from __future__ import annotations

import signal
import socket
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from user_project import UNSCORED, Project

from lightningrl.cli.run_starts import read_starts


def _agent(project: Project, body: str) -> dict[str, Any]:
    (project.folder / "bad_agent.py").write_text(body, encoding="utf-8")
    return {"agent": "bad_agent:solve", "algorithm": _SMALL, "validation": UNSCORED}


_SMALL = {"iterations": 1, "tasks_per_iteration": 2, "group_size": 2}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"optimizer": {"learning_rate": 1}}, "Did you mean 'optimiser'?"),
        ({"algorithm": {**_SMALL, "group_sizes": 3}}, "Did you mean 'group_size'?"),
        ({"algorithm": {**_SMALL, "credit": "brodcast"}}, "Did you mean 'broadcast'?"),
        ({"algorithm": {**_SMALL, "iterations": "many"}}, "iterations"),
        ({"verl": {"actor.optim.learning_rte": 1}}, "actor.optim"),
        ({"verl": {"trainer.nnodes": 2}}, "trainer.nnodes"),
        ({"data": {"train": {"source": "no_such.jsonl"}}}, "no_such.jsonl"),
        ({"data": {"train": {"source": "empty.jsonl"}}}, "at least one task"),
        ({"policies": {"policy": {"model": "nowhere"}}}, "nowhere"),
        ({"policies": {"policy": {"tiny": "quick_project:spce"}}}, "Did you mean 'spec'?"),
        (
            {"policies": {"policy": {"tiny": "quick_project:spec", "tool_parser": "hermess"}}},
            "policies.policy.tool_parser: no tool parser is called 'hermess'; did you mean 'hermes'?",
        ),
    ],
)
def test_a_wrong_recipe_is_an_error_that_names_the_key(
    project: Project, changes: dict[str, Any], said: str
) -> None:
    (project.folder / "empty.jsonl").write_text("")
    done = project.train(str(project.recipe(**changes)))
    assert done.returncode == 2, done.stdout + done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_a_missing_recipe_is_named(project: Project) -> None:
    done = project.train("nowhere.yaml")
    assert done.returncode == 2
    assert "nowhere.yaml" in done.stderr


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("async def solve(task): raise ValueError('no idea how')", "no idea how"),
        pytest.param("async def solve(task): return '12'", "no model call", marks=pytest.mark.long),
    ],
)
def test_agents_that_all_fail_stop_the_run_and_say_why(
    project: Project, body: str, said: str
) -> None:
    done = project.train(str(project.recipe(**_agent(project, body))))
    assert done.returncode == 1, done.stdout + done.stderr
    assert said in done.stderr + done.stdout
    assert "lightningrl try" in done.stderr + done.stdout


@pytest.mark.long
def test_an_agent_that_never_returns_times_out(project: Project) -> None:
    body = "import asyncio\nasync def solve(task): await asyncio.sleep(3600)"
    changes = _agent(project, body)
    retry = {"max_attempts": 1}
    recipe = project.recipe(**changes, runner={"timeout_seconds": 1.5, "retry": retry})
    done = project.train(str(recipe))
    assert done.returncode == 1, done.stdout + done.stderr
    assert "timeout" in done.stderr + done.stdout


def test_an_agent_that_cannot_be_imported_ends_the_run(project: Project) -> None:
    recipe = project.recipe(**_agent(project, "import no_such_package"))
    done = project.train(str(recipe))
    assert done.returncode in (1, 2), done.stdout + done.stderr
    assert "no_such_package" in done.stderr + done.stdout


def test_a_run_that_may_train_no_token_ends_at_once_and_counts_why(project: Project) -> None:
    policy = {"tiny": "quick_project:spec", "tool_parser": "compact", "max_model_len": 256}
    policies = {"policy": {**policy, "train_agents": ["nobody"]}}
    recipe = project.recipe(policies=policies, algorithm=_SMALL, validation=UNSCORED)
    done = project.train(str(recipe))
    assert done.returncode == 3, done.stdout + done.stderr
    said = " ".join(done.stderr.split())
    assert "iteration 1 has no token that may be trained, in 4 rollouts:" in said
    assert "x the policy does not train this agent" in said
    assert [line["iteration"] for line in project.metrics()] == [0]


def test_a_run_in_which_no_rollout_earned_more_says_that_nothing_was_learned(
    project: Project,
) -> None:
    (project.folder / "always.py").write_text("def one(task, output, trace): return 1.0\n")
    recipe = project.recipe(
        reward="always:one", algorithm=_SMALL, step_rewards=[], validation=UNSCORED
    )
    done = project.train(str(recipe))
    assert done.returncode == 3, done.stdout + done.stderr
    assert "✗ all rewards equal: within each of the last" in done.stdout
    assert "Nothing was learned" in done.stdout
    assert "trained model" not in done.stdout
    assert project.metrics()[-1]["train/tokens"] > 0
    assert project.metrics()[-1]["train/tokens_with_signal"] == 0


def test_a_port_in_use_is_named(project: Project) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        done = project.train(str(project.recipe(gateway={"port": port})))
    assert done.returncode == 1, done.stdout + done.stderr
    assert str(port) in done.stderr + done.stdout
    (start,) = read_starts(project.run)
    assert start.said.startswith("error at 20")
    assert str(port) in start.why


def test_ctrl_c_stops_cleanly_and_the_same_command_goes_on(project: Project) -> None:
    algorithm = {"iterations": 2, "tasks_per_iteration": 4, "group_size": 4}
    recipe = str(project.recipe(algorithm=algorithm, validation=UNSCORED))
    first = project.start_train(recipe)
    while not (project.run / ".lock").exists():
        assert first.poll() is None, project.output
        time.sleep(0.05)
    second = project.train(recipe)
    assert second.returncode == 1
    assert str(first.pid) in second.stderr  # one trainer per folder
    metrics = project.run / "metrics.jsonl"
    while not metrics.exists() or not metrics.read_text():
        assert first.poll() is None, project.output
        time.sleep(0.05)
    first.send_signal(signal.SIGINT)
    first.send_signal(signal.SIGINT)  # as impatient people do
    assert first.wait(timeout=60) == 130, project.output
    assert project.output.count("Stopping. An update") == 1
    assert "Stopped." in project.output
    assert read_starts(project.run)[-1].said.startswith("stopped at 20")
    done = project.train(recipe)
    assert done.returncode == 0, done.stdout + done.stderr
    assert [line["iteration"] for line in project.metrics()] == [0, 1, 2]
    assert [one.how for one in read_starts(project.run)] == ["stopped", "finished"]


def test_recipes_in_the_repository_are_valid() -> None:
    recipes = list((Path(__file__).parent.parent / "benchmarks").glob("*/recipes/*.yaml"))
    assert recipes
    for path in recipes:
        assert yaml.safe_load(path.read_text(encoding="utf-8"))["name"]
