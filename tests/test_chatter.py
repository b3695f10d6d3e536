"""A person who trains a published kind of model reads our lines and nobody else's."""

from __future__ import annotations

import re

from bpe_model import write_bpe_model
from user_project import UNSCORED, Project

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
        validation=UNSCORED,
    )
    # The command itself: a warm process has had libraries silenced before.
    done = project.cli("train", str(recipe))
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    told = lines[: next(place for place, line in enumerate(lines) if line.strip() == "Reward")]
    iterations = [line for line in told if ITERATION.fullmatch(line)]
    phases = [line for line in told if line not in iterations]
    assert [line[:13] for line in iterations] == ["iteration 0/1", "iteration 1/1"]
    assert phases[0] == "start frozen policies and ranks"
    assert "iteration 0/1: validate" in phases
    # What trains is said in its order, once.
    of_1 = [line for line in phases if line.startswith("iteration 1/1: ")]
    assert [line.split(": ")[1] for line in of_1[:3]] == ["collect", "credit", "update"]
    assert len(set(phases)) == len(phases), phases
    assert "Traceback" not in (project.run / "logs" / "runner.log").read_text(encoding="utf-8")
