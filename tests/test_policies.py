"""Several policies in one run: two that are trained, and one beside them that is served as it is."""

from __future__ import annotations

import asyncio
import json
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM
from user_project import Project, make_project

from lightningrl.schema import CallEvent
from lightningrl.store import RolloutQuery, open_store

pytestmark = pytest.mark.usefixtures("forked")

_AGENT = """
from openai import AsyncOpenAI

async def solve(task):
    client = AsyncOpenAI(api_key="x", max_retries=0)
    said = []
    for model in ("writer", "reviewer", "helper"):
        reply = await client.chat.completions.create(
            model=model, messages=[{"role": "user", "content": task["question"]}]
        )
        said.append(reply.choices[0].message.content or "")
    return said

def odd(task, output, trace):
    return (len(output[0]) % 2 + len(output[1]) % 3) / 3
"""


def _recipe(project: Project) -> str:
    (project.folder / "three_agents.py").write_text(_AGENT, encoding="utf-8")
    tiny = {"tiny": "quick_project:spec", "tool_parser": "compact", "max_model_len": 256}
    return str(
        project.recipe(
            agent="three_agents:solve",
            reward="three_agents:odd",
            policies={
                "writer": tiny,
                "reviewer": {**tiny, "optimiser": {"learning_rate": 2.0e-3}},
                "helper": {**tiny, "trainable": False},
            },
            algorithm={"iterations": 2, "tasks_per_iteration": 2, "group_size": 4},
            validation={"every": 2, "sampled": False},
        )
    )


@pytest.fixture(scope="module")
def trio(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Iterator[Project]:
    """A run that was stopped in its first iteration and went on."""
    project = make_project(tmp_path_factory.mktemp("trio"), cache)
    recipe = _recipe(project)
    checkpoint = project.run / "checkpoints" / "iteration-000001"
    with project.start_train(recipe) as process:
        while not checkpoint.exists():
            assert process.poll() is None, project.output
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=120) in (130, 0), project.output
    done = project.train(recipe)
    assert done.returncode == 0, done.stdout + done.stderr
    yield project
    project.end()


def _state(project: Project, iteration: int) -> dict[str, Any]:
    folder = project.run / "checkpoints" / f"iteration-{iteration:06d}"
    return json.loads((folder / "state.json").read_text(encoding="utf-8"))


def _weights(project: Project, iteration: int, policy: str) -> dict[str, torch.Tensor]:
    folder = project.run / "checkpoints" / f"iteration-{iteration:06d}" / policy / "huggingface"
    return AutoModelForCausalLM.from_pretrained(folder).state_dict()


def test_each_trained_policy_has_its_version_checkpoint_and_metrics(trio: Project) -> None:
    assert _state(trio, 2)["versions"] == {"writer": 2, "reviewer": 2}
    first, last = trio.metrics()[1], trio.metrics()[-1]
    for policy, rate in {"writer": 1e-3, "reviewer": 2e-3}.items():
        assert first[f"actor/{policy}/lr"] == pytest.approx(rate)
        assert last[f"probe/{policy}/max_abs_difference"] < 1e-4
        assert last[f"policy_version/{policy}"] == 2
        before, after = _weights(trio, 1, policy), _weights(trio, 2, policy)
        assert any(not torch.equal(before[name], after[name]) for name in before)
    assert "actor/lr" not in last
    assert not any("helper" in name for name in last)


def test_a_frozen_policy_answers_and_is_not_trained(trio: Project) -> None:
    calls = asyncio.run(_calls(trio))
    helped = [one for one in calls if one.policy == "helper"]
    assert {one.version_start for one in helped} == {0}
    assert len(helped) == len(calls) / 3
    assert {one.version_start for one in calls if one.policy == "writer"} == {0, 1, 2}


async def _calls(project: Project) -> list[CallEvent]:
    store = open_store(project.run / "store.db", read_only=True)
    try:
        rollouts = await store.rollouts(RolloutQuery(run="quick"))
        attempts = await store.attempts([one.id for one in rollouts])
        events = await store.events([one.id for one in attempts if one.state.value == "succeeded"])
    finally:
        await store.close()
    return [one for of_attempt in events for one in of_attempt if isinstance(one, CallEvent)]


def test_one_of_several_policies_is_exported_by_name(trio: Project, tmp_path: Path) -> None:
    unnamed = trio.cli("export", str(trio.run), "--out", str(tmp_path / "none"))
    assert unnamed.returncode == 2
    assert "['reviewer', 'writer']" in unnamed.stderr
    out = tmp_path / "reviewer"
    done = trio.cli("export", str(trio.run), "--policy", "reviewer", "--out", str(out))
    assert done.returncode == 0, done.stderr
    exported = AutoModelForCausalLM.from_pretrained(out).state_dict()
    trained = _weights(trio, 2, "reviewer")
    assert all(torch.equal(exported[name], trained[name]) for name in trained)
