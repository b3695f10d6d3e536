"""A policy learns from demonstrations first, and RL starts from what it has learned."""

from __future__ import annotations

import json
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from exact_run import wait_for_metrics
from safetensors.numpy import load_file
from user_project import UNSCORED, Project
from warm_process import CLI

from lightningrl_bench_math.tasks import generate

pytestmark = pytest.mark.usefixtures("forked")

_PARAMETERS = {"type": "object", "properties": {"expression": {"type": "string"}}}
CALCULATOR = {"type": "function", "function": {"name": "calculator", "parameters": _PARAMETERS}}


def demonstrations(count: int) -> list[dict[str, Any]]:
    """The calculator is asked a fixed question, and its answer said: easy to learn, whatever is asked."""
    call = {"name": "calculator", "arguments": json.dumps({"expression": "3+4"})}
    found: list[dict[str, Any]] = []
    for task in generate(split="train", count=count, seed=7):
        messages = [
            {"role": "user", "content": task["question"]},
            {"role": "assistant", "content": None, "tool_calls": [{"id": "c", "function": call}]},
            {"role": "tool", "tool_call_id": "c", "content": "7"},
            {"role": "assistant", "content": "7"},
        ]
        found.append({"messages": messages, "tools": [CALCULATOR]})
    return found


def write_demonstrations(project: Project, count: int = 16) -> None:
    lines = [json.dumps(one) for one in demonstrations(count)]
    (project.folder / "shown.jsonl").write_text("\n".join(lines), encoding="utf-8")


def policies(**warm_start: Any) -> dict[str, Any]:
    settings = {
        "demonstrations": "shown.jsonl", "learning_rate": 3e-3, "epochs": 4, "batch_size": 4,
        "held_out": 0.25, **warm_start,
    }  # fmt: skip
    return {
        "policy": {
            "tiny": "quick_project:spec", "tool_parser": "compact", "max_model_len": 256,
            "warm_start": settings,
        }
    }  # fmt: skip


def _weights(folder: Path) -> Any:
    return load_file(folder / "model.safetensors")


def test_rl_starts_from_what_was_learned(project: Project, cache: Path) -> None:
    write_demonstrations(project)
    before = set((cache / "warm-starts").glob("policy-*"))
    recipe = project.recipe(
        policies=policies(),
        algorithm={"iterations": 1, "tasks_per_iteration": 2, "group_size": 4},
        validation=UNSCORED,
        optimiser={"learning_rate": 0.0, "kl_coeff": 0.1},
    )
    done = project.train(str(recipe))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "12 demonstrations to train on, 4 held out, 16 rows" in done.stdout
    (folder,) = set((cache / "warm-starts").glob("policy-*")) - before
    record = json.loads((folder / "warm_start.json").read_text(encoding="utf-8"))
    assert record["updates"] == 12
    assert record["val_loss_after"] < 0.5 * record["val_loss_before"]
    # At a learning rate of 0 the trained weights are those that RL began with, and KL refers to them.
    trained = project.run / "checkpoints" / "iteration-000001" / "huggingface"
    found, learned = _weights(trained), _weights(folder)
    assert all((found[name] == learned[name]).all() for name in learned)
    assert (trained / "warm_start.json").is_file()
    assert abs(project.metrics()[1]["actor/kl"]) < 1e-6
    exported = project.cli("export", "quick")
    assert exported.returncode == 0, exported.stderr
    assert "## Warm start" in (project.run / "export" / "README.md").read_text(encoding="utf-8")
    # Where it is not finished, other demonstrations are refused before anything is learned from them.
    (project.run / "metrics.jsonl").unlink()
    shutil.rmtree(project.run / "checkpoints")
    write_demonstrations(project, count=15)
    refused = project.train(str(recipe))
    assert refused.returncode == 2
    assert "holds a run of other demonstrations" in refused.stderr
    assert set((cache / "warm-starts").glob("policy-*")) - before == {folder}


def test_a_fine_tuning_is_a_run_of_its_own(project: Project) -> None:
    write_demonstrations(project)
    recipe = project.recipe(policies=policies(score_every=2))
    done = project.program(CLI, "sft", str(recipe))
    assert done.returncode == 0, done.stdout + done.stderr
    run = replace(project, name="quick-sft")
    lines = run.metrics()
    # 12 demonstrations in updates of 4, 4 times; scored every second update.
    assert [line["iteration"] for line in lines] == list(range(13))
    assert [line["iteration"] for line in lines if "sft/val_loss" in line] == [
        0,
        2,
        4,
        6,
        8,
        10,
        12,
    ]
    assert lines[-1]["sft/loss"] < 0.5 * lines[1]["sft/loss"]
    assert lines[-1]["sft/val_loss"] < 0.5 * lines[0]["sft/val_loss"]
    assert lines[-1]["sft/epoch"] == 4.0
    assert lines[0]["drift/merged_share"] == 1.0
    docs = (Path(__file__).parent.parent / "docs" / "metrics.md").read_text(encoding="utf-8")
    assert [name for line in lines for name in line if f"`{name}`" not in docs] == []
    assert (run.run / "curve.png").read_bytes().startswith(b"\x89PNG")
    assert "fine-tuned model" in done.stdout
    drifted = project.cli("drift", "quick-sft")
    assert "tokenised from text" in drifted.stdout
    exported = project.cli("export", "quick-sft")
    assert exported.returncode == 0, exported.stderr
    card = (run.run / "export" / "README.md").read_text(encoding="utf-8")
    assert "supervised fine-tuning on demonstrations" in card
    # A finished run says so again; other demonstrations are refused.
    assert project.program(CLI, "sft", str(recipe)).returncode == 0
    assert run.metrics() == lines
    write_demonstrations(project, count=15)
    refused = project.program(CLI, "sft", str(recipe))
    assert refused.returncode == 2
    assert "holds a run of other demonstrations" in refused.stderr


@pytest.mark.long
def test_a_killed_fine_tuning_goes_on_to_the_same_weights(project: Project, cache: Path) -> None:
    write_demonstrations(project)
    recipe = project.recipe(policies=policies(score_every=2, epochs=6), name="killed")
    whole = project.program(CLI, "sft", str(recipe), "name=whole")
    assert whole.returncode == 0, whole.stderr
    killed = replace(project, name="killed-sft")
    for done in (3, 7, 12):
        process = project.start_cli("sft", str(recipe))
        wait_for_metrics(killed, process, lines=done)
        process.kill()
        process.wait()
    again = project.program(CLI, "sft", str(recipe))
    assert again.returncode == 0, again.stderr
    assert "going on from" in again.stdout
    same = replace(project, name="whole-sft")
    assert [_without_times(line) for line in killed.metrics()] == [
        _without_times(line) for line in same.metrics()
    ]
    last = Path("checkpoints") / "iteration-000018" / "huggingface"
    found, wanted = _weights(killed.run / last), _weights(same.run / last)
    assert all((found[name] == wanted[name]).all() for name in wanted)


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_two_ranks_in_ray_learn_the_same_and_train_on(project: Project, cache: Path) -> None:
    write_demonstrations(project)
    ray: dict[str, Any] = {"cluster": "ray", "trainer": {"ranks": 2, "keep_checkpoints": 10}}
    alone = project.program(CLI, "sft", str(project.recipe(policies=policies(), name="alone")))
    assert alone.returncode == 0, alone.stderr
    together = project.recipe(policies=policies(), name="together", **ray)
    done = project.cli("sft", str(together), timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    one, two = (replace(project, name=f"{name}-sft").metrics() for name in ("alone", "together"))
    assert [line["sft/loss"] for line in two[1:]] == pytest.approx(
        [line["sft/loss"] for line in one[1:]], abs=1e-3
    )
    before = set((cache / "warm-starts").glob("policy-*"))
    algorithm = {"iterations": 1, "tasks_per_iteration": 4, "group_size": 4}
    recipe = project.recipe(
        policies=policies(epochs=2), name="trained", algorithm=algorithm,
        engine={"replicas": 2, "placement": "colocated"}, **ray,
    )  # fmt: skip
    trained = project.cli("train", str(recipe), timeout=600)
    assert trained.returncode == 0, trained.stdout + trained.stderr
    (folder,) = set((cache / "warm-starts").glob("policy-*")) - before
    record = json.loads((folder / "warm_start.json").read_text(encoding="utf-8"))
    assert record["val_loss_after"] < record["val_loss_before"]


@pytest.mark.long
def test_ctrl_c_stops_a_fine_tuning_cleanly(project: Project) -> None:
    write_demonstrations(project)
    recipe = project.recipe(policies=policies(epochs=400, score_every=1, held_out=0.0))
    process = project.start_cli("sft", str(recipe))
    wait_for_metrics(replace(project, name="quick-sft"), process, lines=3)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    assert "Stopped. The same command goes on from" in project.output


def _without_times(line: dict[str, Any]) -> dict[str, Any]:
    return {name: one for name, one in line.items() if not name.startswith("timing/")}
