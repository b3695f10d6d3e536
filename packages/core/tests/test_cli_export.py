"""`lightningrl export` and `plot`: what a run leaves behind, ready to be used and looked at."""

import json
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner, Result

from lightningrl.cli import commands
from lightningrl.deployment import read_serving, serving_of, serving_path, write_serving
from lightningrl.recipe import load_recipe
from lightningrl.schema import RewriteRules

RECIPE = """
name: arithmetic
agent: my_agent:solve
policies:
  policy: {model: base, tool_parser: hermes, max_model_len: 512, replaces: [gpt-x]}
"""
METRICS = [
    {"iteration": 0, "val/reward": 0.25, "val/reward_sampled": 0.125},
    {"iteration": 1, "train/reward": 0.3},
    {"iteration": 2, "train/reward": 0.5, "val/reward": 0.75, "test/reward": 0.6875},
]
ORIGIN = {
    "commit": "abc123",
    "started_at": "2026-01-02T03:04:05+00:00",
    "versions": {"lightningrl": "0.1.0"},
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run with the checkpoints of iterations 1 and 2."""
    run = tmp_path / "run"
    for iteration in (1, 2):
        model = run / "checkpoints" / f"iteration-{iteration:06d}" / "huggingface"
        model.mkdir(parents=True)
        (model / "config.json").write_text(json.dumps({"of": iteration}))
        (model / "shards").mkdir()
        (model / "shards" / "one.safetensors").write_bytes(b"weights")
        (model.parent / "state.json").write_text("{}")
    (run / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    (run / "run.json").write_text(json.dumps(ORIGIN))
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in METRICS))
    return run


def program(*arguments: object) -> Result:
    return CliRunner().invoke(commands, [str(one) for one in arguments])


def files(folder: Path) -> list[str]:
    return sorted(str(one.relative_to(folder)) for one in folder.rglob("*") if one.is_file())


# -- export -------------------------------------------------------------------------------------


def test_the_newest_checkpoint_becomes_a_hugging_face_folder(folder: Path) -> None:
    result = program("export", folder)
    assert (result.exit_code, result.output) == (
        0,
        f"exported iteration 2 to {folder / 'export'}\n",
    )
    assert files(folder / "export") == ["README.md", "config.json", "shards/one.safetensors"]
    assert json.loads((folder / "export" / "config.json").read_text()) == {"of": 2}


def test_an_older_checkpoint_can_be_asked_for(folder: Path, tmp_path: Path) -> None:
    assert program("export", folder, "--iteration", 1, "--out", tmp_path / "out").exit_code == 0
    assert json.loads((tmp_path / "out" / "config.json").read_text()) == {"of": 1}


def card(folder: Path, *options: object) -> str:
    result = program("export", folder, *options)
    assert result.exit_code == 0, result.output
    return (folder / "export" / "README.md").read_text(encoding="utf-8")


def test_the_card_has_the_rewards_of_base_and_checkpoint(folder: Path) -> None:
    text = card(folder)
    assert "| validation, greedy | 0.250 | 0.750 |" in text
    assert "| validation, sampled | 0.125 | not scored |" in text
    assert "| test, greedy | not scored | 0.688 |" in text


def test_the_card_says_where_the_model_came_from(folder: Path) -> None:
    text = card(folder)
    assert "# arithmetic, iteration 2" in text
    assert "LightningRL 0.1.0" in text
    assert "Commit `abc123`, started 2026-01-02T03:04:05+00:00" in text


def test_the_card_begins_with_front_matter_that_the_hub_reads(folder: Path) -> None:
    _, front, _ = card(folder).split("---\n", 2)
    assert yaml.safe_load(front)["library_name"] == "transformers"


def test_the_recipe_in_the_card_is_the_runs_whole_recipe(folder: Path, tmp_path: Path) -> None:
    inline = card(folder).split("```yaml\n")[1].split("```")[0]
    copy = tmp_path / "copy.yaml"
    copy.write_text(inline, encoding="utf-8")
    assert load_recipe(copy).recipe == load_recipe(folder / "recipe.yaml").recipe


def test_the_card_says_how_to_serve_it_to_the_unchanged_agent(folder: Path) -> None:
    text = card(folder)
    assert (
        "vllm serve . --served-model-name gpt-x --max-model-len 512"
        " --enable-auto-tool-choice --tool-call-parser hermes\n" in text
    )
    assert "it asks for `gpt-x`" in text
    assert "export OPENAI_BASE_URL=http://127.0.0.1:8000/v1\n" in text


def test_a_tool_call_form_that_vllm_cannot_read_is_said(folder: Path) -> None:
    recipe = RECIPE.replace("hermes", "compact")
    (folder / "recipe.yaml").write_text(recipe, encoding="utf-8")
    text = card(folder)
    assert "--tool-call-parser" not in text
    assert "`compact` form, which vLLM does not read" in text


def test_a_tiny_policy_says_that_it_is_one(folder: Path) -> None:
    assert "tiny policy" not in card(folder)
    recipe = RECIPE.replace("model: base", "tiny: my_agent:spec")
    (folder / "recipe.yaml").write_text(recipe, encoding="utf-8")
    assert "**This is a tiny policy.**" in card(folder, "--force")


def test_how_a_tiny_policy_was_built_is_in_the_card(folder: Path) -> None:
    model = folder / "checkpoints" / "iteration-000002" / "huggingface"
    (model / "tiny_policy.json").write_text('{"parameters": 12345}\n')
    text = card(folder)
    assert "**This is a tiny policy.**" in text
    assert '```json\n{"parameters": 12345}\n```' in text


def test_an_export_says_what_an_engine_alone_would_not_do(folder: Path) -> None:
    rules = RewriteRules(roles={"developer": "system"}, merge_instructions=True)
    policy = load_recipe(folder / "recipe.yaml").recipe.policies["policy"]
    serving = serving_of("policy", policy, rules, "{{ messages }}")
    write_serving(serving_path(folder, "policy"), serving)
    result = program("export", folder)
    assert result.exit_code == 0, result.output
    assert "Messages of role `developer` were sent as `system`" in result.output
    assert read_serving(folder / "export" / "serving.json") == serving
    text = (folder / "export" / "README.md").read_text(encoding="utf-8")
    assert "- Several system messages at the beginning were sent as one" in text


def test_a_record_of_serving_that_cannot_be_read_is_told(folder: Path) -> None:
    path = serving_path(folder, "policy")
    path.parent.mkdir()
    path.write_text("{", encoding="utf-8")
    result = program("export", folder)
    assert result.exit_code != 0
    assert not (folder / "export").exists()


def test_what_a_policy_learned_first_is_in_the_card(folder: Path) -> None:
    model = folder / "checkpoints" / "iteration-000002" / "huggingface"
    (model / "warm_start.json").write_text('{"demonstrations": 448}\n')
    text = card(folder)
    assert '## Warm start\n\n```json\n{"demonstrations": 448}\n```' in text
    assert "reinforcement learning of the model behind an agent" in text


def test_the_card_of_a_fine_tuning_has_its_losses(folder: Path) -> None:
    learning = "warm_start: {demonstrations: d.jsonl, learning_rate: 0.001}"
    recipe = f"name: a\npolicies:\n  policy: {{model: base, {learning}}}\n"
    (folder / "recipe.yaml").write_text(recipe, encoding="utf-8")
    lines = [
        {"iteration": 0, "sft/val_loss": 2.0},
        {"iteration": 1, "sft/loss": 1.5},
        {"iteration": 2, "sft/loss": 1.25, "sft/val_loss": 1.125},
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "metrics.jsonl").write_text(text, encoding="utf-8")
    assert program("plot", folder).exit_code == 0
    written = card(folder)
    assert "supervised fine-tuning on demonstrations" in written
    assert "| demonstrations held out | 2.000 | 1.125 |" in written
    assert "![Loss by iteration](curve.png)" in written
    assert "## Rewards" not in written


def test_a_fine_tuning_has_no_rollouts_to_show(folder: Path) -> None:
    result = program("show", folder)
    assert result.exit_code == 2
    assert "Of a fine-tuning 'lightningrl drift' shows" in " ".join(result.stderr.split())


def test_the_curve_comes_along(folder: Path) -> None:
    assert "curve.png" not in card(folder)
    assert program("plot", folder).exit_code == 0
    assert "![Reward by iteration](curve.png)" in card(folder, "--force")
    assert (folder / "export" / "curve.png").read_bytes() == (folder / "curve.png").read_bytes()


def test_a_folder_that_is_not_empty_is_left_alone(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    result = program("export", folder, "--out", tmp_path)
    assert result.exit_code == 2
    assert "is there and not empty; choose another --out, or --force" in result.stderr
    assert not (tmp_path / "README.md").exists()


def test_force_replaces_files_of_the_same_name_and_no_others(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    (out / "config.json").write_text("old")
    assert program("export", folder, "--out", out, "--force").exit_code == 0
    assert (out / "mine.txt").read_text() == "mine"
    assert json.loads((out / "config.json").read_text()) == {"of": 2}


def test_an_empty_folder_is_written_into(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    assert program("export", folder, "--out", tmp_path / "out").exit_code == 0


def test_a_checkpoint_that_is_gone_is_answered_by_those_that_are_kept(folder: Path) -> None:
    result = program("export", folder, "--iteration", 7)
    assert result.exit_code == 2
    assert "no checkpoint of iteration 7; it keeps those of 1, 2" in result.stderr


def test_a_run_without_checkpoints_says_so(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    result = program("export", tmp_path)
    assert result.exit_code == 2
    assert "has no checkpoint yet" in result.stderr


def test_a_checkpoint_that_is_being_written_is_none(folder: Path) -> None:
    (folder / "checkpoints" / ".writing-iteration-000003" / "huggingface").mkdir(parents=True)
    assert "exported iteration 2" in program("export", folder).output


# -- plot ---------------------------------------------------------------------------------------


def test_plot_draws_the_curve_into_the_runs_folder(folder: Path) -> None:
    result = program("plot", folder)
    assert (result.exit_code, result.output) == (0, f"{folder / 'curve.png'}\n")
    assert (folder / "curve.png").read_bytes().startswith(b"\x89PNG")


def test_plot_draws_elsewhere_if_told_to(folder: Path, tmp_path: Path) -> None:
    assert program("plot", folder, "--out", tmp_path / "picture.png").exit_code == 0
    assert not (folder / "curve.png").exists()
    assert (tmp_path / "picture.png").exists()


def test_plot_of_a_run_without_metrics_says_when_there_will_be_some(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    result = program("plot", tmp_path)
    assert result.exit_code == 2
    assert "there are no metrics" in result.stderr
