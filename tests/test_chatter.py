"""A person who trains a published kind of model reads our lines and nobody else's."""

from __future__ import annotations

import re

from bpe_model import write_bpe_model
from user_project import Project

AGENT = """
from openai import AsyncOpenAI

async def solve(task):
    async with AsyncOpenAI() as client:
        said = await client.chat.completions.create(
            model="m", messages=[{"role": "user", "content": task["question"]}]
        )
    return said.choices[0].message.content
"""

ITERATION = re.compile(r"iteration [01]/1(  (train|val|test)/\w+ [01]\.\d{3})+(  [\d.]+ s)?")


def test_a_run_of_a_model_with_a_bpe_tokenizer_prints_only_our_lines(project: Project) -> None:
    (project.folder / "plain_agent.py").write_text(AGENT, encoding="utf-8")
    write_bpe_model(project.folder / "model")
    recipe = project.recipe(
        agent="plain_agent:solve",
        policies={"policy": {"model": "model", "max_model_len": 256}},
        step_rewards=[],
        algorithm={"iterations": 1, "tasks_per_iteration": 2, "group_size": 4},
    )
    # The command itself: a warm process has had libraries silenced before.
    done = project.cli("train", str(recipe))
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    first, second, title, *_ = done.stdout.splitlines()
    assert ITERATION.fullmatch(first), first
    assert ITERATION.fullmatch(second), second
    assert title.strip() == "Reward"
    assert "Traceback" not in (project.run / "logs" / "runner.log").read_text(encoding="utf-8")
