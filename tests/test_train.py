"""The main job, as a user does it: one command, a folder with everything, and what reads it."""

from __future__ import annotations

import json
import re
import shutil
import sqlite3
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from user_project import Project, make_project
from warm_process import CLI

from lightningrl.cli.run_starts import read_starts
from lightningrl.lessons import read_lesson

pytestmark = pytest.mark.usefixtures("forked")


def test_a_run_leaves_everything_that_it_promises(trained: Project) -> None:
    left = {path.name for path in trained.run.iterdir()}
    assert left >= {
        "recipe.yaml", "run.json", "metrics.jsonl", "curve.png", "store.db", "drift.json",
        "checkpoints", "serving", "logs", "lesson", "tokenizer",
    }  # fmt: skip
    assert [one.how for one in read_starts(trained.run)] == ["finished"]
    assert (trained.run / "curve.png").read_bytes().startswith(b"\x89PNG")


def test_each_iteration_stands_once_with_its_rewards(trained: Project) -> None:
    lines = trained.metrics()
    assert [line["iteration"] for line in lines] == [0, 1, 2, 3]
    assert ["train/reward" in line for line in lines] == [False, True, True, True]
    # Validation every second iteration, and at the last one; the test split once, at the end.
    assert ["val/reward" in line for line in lines] == [True, False, True, True]
    assert ["val/reward_sampled" in line for line in lines] == [True, False, True, True]
    assert ["test/reward" in line for line in lines] == [False, False, False, True]


def test_every_sync_is_probed_and_overhead_is_reported(trained: Project) -> None:
    lines = trained.metrics()
    assert max(line["probe/max_abs_difference"] for line in lines) < 1e-4
    assert all(0 <= line["timing/overhead"] <= 1 for line in lines[1:])


def test_a_lesson_has_the_log_probs_of_every_trained_token(trained: Project) -> None:
    for line in trained.metrics()[1:]:
        found = read_lesson(trained.run, line["iteration"], log_probs=True)
        assert found is not None
        calls = [one for one in found[1] if one.trained]
        engine = np.concatenate([one.engine_log_probs for one in calls])
        trainer = np.concatenate([one.trainer_log_probs for one in calls])
        assert len(engine) == sum(one.tokens for one in calls) == line["train/tokens_with_signal"]
        assert np.abs(engine - trainer).mean() == pytest.approx(
            line["actor/log_prob_gap"], abs=1e-6
        )
        assert all(one.credit and one.parts.keys() >= {"reward", "baseline"} for one in calls)


def test_updates_had_signal_and_every_later_turn_merged(trained: Project) -> None:
    lines = trained.metrics()[1:]
    assert all(line["train/rows_with_signal"] > 0 for line in lines)
    assert all(line["actor/grad_norm"] > 0 for line in lines)
    later_turns = [line for line in lines if line["train/calls_per_rollout"] > 1]
    assert later_turns
    assert all(line["drift/merged_share"] == 1.0 for line in later_turns)


def test_every_metric_is_defined_in_the_docs(trained: Project) -> None:
    docs = (Path(__file__).parent.parent / "docs" / "metrics.md").read_text(encoding="utf-8")
    for line in trained.metrics():
        named = [name.replace("step_reward/length", "step_reward/RULE") for name in line]
        assert [name for name in named if f"`{name}`" not in docs] == []


def test_step_rewards_are_computed_in_training_and_again_from_the_store(trained: Project) -> None:
    lines = trained.metrics()[1:]
    assert all(line["step_reward/length_missing"] == 0.0 for line in lines)
    means = [line["step_reward/length"] for line in lines]
    done = trained.cli("rescore", "quick")
    assert done.returncode == 0, done.stderr
    assert f"{means[-1]:.3f}" in done.stdout


def test_methods_are_compared_on_a_finished_run(trained: Project) -> None:
    done = trained.cli("credit", "quick", "--with", "gigpo,step_reward", "--iteration", "1")
    assert done.returncode == 0, done.stderr
    for name in ("broadcast", "gigpo", "step_reward"):
        assert name in done.stdout


def test_the_trained_model_is_a_hugging_face_folder(trained: Project) -> None:
    folder = trained.run / "checkpoints" / "iteration-000003" / "huggingface"
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "tom has 3 apples"}], add_generation_prompt=True,
        return_tensors="pt", return_dict=False,
    )  # fmt: skip
    with torch.no_grad():
        assert torch.isfinite(model(prompt).logits).all()


def test_a_finished_run_says_so_again_and_trains_nothing(trained: Project) -> None:
    before = trained.metrics()
    again = trained.train(str(trained.recipe()))
    assert again.returncode == 0
    assert "test, greedy, scored once" in again.stdout
    assert "export OPENAI_BASE_URL=" in again.stdout
    assert trained.metrics() == before


def test_a_run_that_lost_its_store_goes_on_from_its_checkpoint(
    trained: Project, tmp_path: Path, cache: Path
) -> None:
    shutil.copytree(trained.run, tmp_path / "runs" / "quick")
    project = make_project(tmp_path, cache)
    shutil.rmtree(project.run / "checkpoints" / "iteration-000003")
    lines = (project.run / "metrics.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (project.run / "metrics.jsonl").write_text("".join(lines[:3]), encoding="utf-8")
    for path in project.run.glob("store.db*"):
        path.unlink()
    again = project.train(str(project.recipe()))
    assert again.returncode == 0, again.stderr
    assert "the store does not know what iteration 2" in again.stdout
    assert [line["iteration"] for line in project.metrics()] == [0, 1, 2, 3]
    with sqlite3.connect(project.run / "store.db") as store:
        assert store.execute("SELECT DISTINCT iteration FROM takes").fetchall() == [(3,)]


def test_a_changed_recipe_is_refused_naming_the_key(trained: Project) -> None:
    refused = trained.train(str(trained.recipe()), "optimiser.learning_rate=0.5")
    assert refused.returncode == 2
    assert "optimiser.learning_rate" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_show_prints_calls_with_tokens_reward_and_credit(trained: Project) -> None:
    shown = trained.cli("show", str(trained.run), "--mode", "train", "--last", "16")
    assert shown.returncode == 0, shown.stderr
    for word in ("reward", "credit", "sampled", "mean log-prob"):
        assert word in shown.stdout, shown.stdout


def test_export_writes_a_folder_with_a_model_card(trained: Project, tmp_path: Path) -> None:
    out = tmp_path / "model"
    done = trained.cli("export", str(trained.run), "--out", str(out))
    assert done.returncode == 0, done.stderr
    assert "warm-started" in (out / "README.md").read_text(encoding="utf-8")
    assert AutoModelForCausalLM.from_pretrained(out).num_parameters() > 1000


def test_eval_scores_policies_as_training_did_and_compares_them(trained: Project) -> None:
    done = trained.program(
        CLI, "eval", str(trained.recipe()), "--policy", "run:quick@0", "--policy", "run:quick@best",
        "--split", "val", "--json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert [one["policy"] for one in told["policies"]] == [
        "run:quick@0", "run:quick@best",
    ]  # fmt: skip
    lines = trained.metrics()
    best = max(lines[1:], key=lambda line: line.get("val/reward_sampled", -1))
    for one, line in zip(told["policies"], (lines[0], best), strict=True):
        assert len(one["greedy"]["rewards"]) == told["tasks"]
        assert one["greedy"]["reward"]["mean"] == pytest.approx(line["val/reward"], abs=1e-6)
        assert one["greedy"]["reward"]["low"] <= one["greedy"]["reward"]["mean"]
    first, second = (one["sampled"]["reward"]["mean"] for one in told["policies"])
    assert told["difference"]["sampled"]["mean"] == pytest.approx(second - first, abs=1e-5)
    folder = trained.folder / "runs" / told["run"]
    assert json.loads((folder / "eval.json").read_text(encoding="utf-8")) == told
    assert "reward" in trained.cli("show", str(folder), "--last", "1").stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--policy", "base", "--policy", "base", "--policy", "base"), "name one policy, or two"),
        (("--policy", "base", "--as", "polcy"), "Did you mean 'policy'"),
        (("--policy", "runs/nowhere"), "is no Hugging Face model folder"),
        (("--policy", "run:nowhere"), "nowhere"),
        (("data.test=null", "--policy", "base"), "data.test: the recipe has no such split"),
    ],
)
def test_eval_refuses_what_it_cannot_measure(
    trained: Project, arguments: tuple[str, ...], said: str
) -> None:
    before = sorted((trained.folder / "runs").iterdir())
    refused = trained.program(CLI, "eval", str(trained.recipe()), *arguments)
    assert refused.returncode == 2, refused.stderr
    assert said in refused.stderr
    assert "Traceback" not in refused.stderr
    assert sorted((trained.folder / "runs").iterdir()) == before


def test_a_rehearsal_says_what_the_recipe_takes_and_keeps_nothing(trained: Project) -> None:
    before = sorted((trained.folder / "runs").iterdir())
    (trained.folder / "runs" / ".rehearsal-of-a-killed-one" / "run").mkdir(parents=True)
    done = trained.train(str(trained.recipe(algorithm={
        "iterations": 36, "tasks_per_iteration": 6, "group_size": 4,
    })), "--rehearse")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "One iteration of 8 rollouts: collect" in done.stdout
    for phase in ("update", "checkpoint", "sync"):
        assert re.search(rf"{phase} \d+\.\d s", done.stdout), done.stdout
    assert "36 iterations of 24 rollouts take" in done.stdout
    assert sorted((trained.folder / "runs").iterdir()) == before
    refused = trained.train(str(trained.recipe()), "--rehearse", "optimiser.learning_rte=1")
    assert refused.returncode == 2
    assert "Did you mean 'learning_rate'" in refused.stderr


def test_the_drift_report_accounts_for_every_rollout_and_row(trained: Project) -> None:
    lines = trained.metrics()[1:]
    for line in lines:
        name = f"iteration-{line['iteration']:06d}.jsonl"
        report = (trained.run / "drift" / name).read_text(encoding="utf-8").splitlines()
        rollouts = [json.loads(one) for one in report]
        assert len(rollouts) == line["train/rollouts"]
        gaps = [row["gap"] for one in rollouts for row in one["rows"] if row["gap"] is not None]
        assert len(gaps) == line["train/rows_with_signal"]
        # Engine and trainer compute alike, on the same weights.
        assert 0 < max(gap["max"] for gap in gaps) == line["actor/log_prob_gap_max"] < 1e-4
    shown = trained.cli("drift", "quick", "--rollout", rollouts[0]["rollout"])
    assert rollouts[0]["rollout"] in shown.stdout, shown.stderr
