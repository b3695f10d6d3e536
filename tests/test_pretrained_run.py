"""A run from a GGUF file: converted, trained with the Hermes template, exported, and the base of a second run."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path
from typing import Any

import yaml
from openai import OpenAI
from tiny_gguf import TinyGguf
from user_project import Project
from warm_process import CLI


def _recipe(project: Project, **policy: Any) -> Path:
    path = project.recipe(
        algorithm={"iterations": 1, "tasks_per_iteration": 2, "group_size": 4},
        step_rewards=[],
        policies={"policy": {"tool_parser": "hermes", "max_model_len": 1024, **policy}},
    )
    recipe = yaml.safe_load(path.read_text(encoding="utf-8"))
    recipe["data"] = {"train": recipe["data"]["train"]}
    path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    return path


def test_a_gguf_file_is_trained_exported_and_trained_again(project: Project) -> None:
    TinyGguf(quantised=True).write(project.folder / "tiny.gguf")
    done = project.train(str(_recipe(project, model="tiny.gguf", chat_template="hermes")))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Converting" not in done.stderr
    told = next(line for line in done.stdout.splitlines() if line.startswith("model 'tiny.gguf'"))
    for part in (
        "licence mit",
        "sha256",
        "not bit for bit the published model",
        "chat template 'hermes'",
    ):
        assert part in told, part

    model = project.run / "checkpoints" / "iteration-000001" / "huggingface"
    assert "<tool_response>" in (model / "chat_template.jinja").read_text(encoding="utf-8")
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    assert config["eos_token_id"] == 2
    assert project.program(CLI, "export", str(project.run), "--out", "out").returncode == 0
    card = (project.folder / "out" / "README.md").read_text(encoding="utf-8")
    assert card.startswith("---\nlicense: mit\n")
    assert "not bit for bit the published model" in card

    shown = project.program(CLI, "model", "convert", "run:quick")
    assert Path(shown.stdout.strip()) == model
    _is_served(project)


def _is_served(project: Project) -> None:
    """The run's model answers both clients, with a name that it does not have."""
    from anthropic import Anthropic

    url_file = project.folder / "url"
    serving = project.start_cli(
        "serve", "--policy", "run:quick", "--port", "0", "--url-file", str(url_file)
    )
    while not url_file.exists():
        assert serving.poll() is None, project.output
        time.sleep(0.1)
    url = url_file.read_text(encoding="utf-8")
    ask: Any = [{"role": "user", "content": "what is 12 plus 30?"}]
    with OpenAI(base_url=f"{url}/v1", api_key="-") as openai:
        reply = openai.chat.completions.create(model="gpt-4o", messages=ask, max_tokens=8)
        assert [one.id for one in openai.models.list()] == ["tiny"]
    with Anthropic(base_url=url, api_key="-") as anthropic:
        message = anthropic.messages.create(model="claude", messages=ask, max_tokens=8)
    assert reply.usage is not None
    assert reply.usage.completion_tokens > 0
    assert message.usage.input_tokens == reply.usage.prompt_tokens
    serving.send_signal(signal.SIGTERM)
    assert serving.wait(60) == 0
