"""A policy that the real vLLM serves while it is trained; on a CPU, in minutes."""

from __future__ import annotations

import asyncio
import json
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM
from user_project import Project, make_project
from vllm_environment import make_environment, served

from lightningrl.experience.transition import Transition
from lightningrl.recipe import Optimiser, load_recipe
from lightningrl.schema import Mode, RolloutState
from lightningrl.store import RolloutQuery, open_store
from lightningrl.traces import read_attempts
from lightningrl_bench_math.policy import tiny_spec
from lightningrl_testkit.engine_fields import ENGINE_FIELDS, Does, is_refused
from lightningrl_verl.serving.probe import WeightMismatch, probe
from lightningrl_verl.serving.vllm_servers import VllmEngines
from lightningrl_verl.tiny import TinySpec, build_tiny
from lightningrl_verl.worker.backend import VerlBackend
from lightningrl_verl.worker.backend_config import BackendConfig

pytestmark = [pytest.mark.long, pytest.mark.timeout(1500)]

AGENT = '''
from openai import AsyncOpenAI

TOOL = {"type": "function", "function": {"name": "calculate", "description": "Calculates.",
        "parameters": {"type": "object", "properties": {"expression": {"type": "string"}}}}}

async def solve(task):
    """One call in each form that agents use."""
    messages = [{"role": "user", "content": task["question"]}]
    async with AsyncOpenAI() as client:
        chat = client.chat.completions
        tools = await chat.create(model="any", messages=messages, tools=[TOOL])
        stream = await chat.create(model="any", messages=messages, stream=True)
        pieces = [part.choices[0].delta.content or "" async for part in stream if part.choices]
        response = await client.responses.create(model="any", input=task["question"])
        completion = await client.completions.create(model="any", prompt=task["question"])
    texts = (tools.choices[0].message.content, "".join(pieces), response.output_text, completion.choices[0].text)
    return "".join(text or "" for text in texts)
'''


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A hardly trained policy with a tied head, in a shape that vLLM's attention takes."""
    spec = {**tiny_spec(), "name": "vllm", "hidden_size": 128, "updates": 40, "batch_size": 16}
    folder = tmp_path_factory.mktemp("tiny")
    return build_tiny(TinySpec(**spec), folder, seed=0, threads=1).path


@pytest.fixture(scope="module")
def vllm(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a vLLM server of the policy."""
    folder = tmp_path_factory.mktemp("vllm")
    with served(make_environment(folder), base, "policy", folder / "vllm.log") as url:
        yield url


@pytest.fixture(scope="module")
def trained(vllm: str, base: Path, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A finished run whose policy vLLM served."""
    project = make_project(tmp_path_factory.mktemp("trained"), tmp_path_factory.mktemp("cache"))
    (project.folder / "dialects.py").write_text(AGENT, encoding="utf-8")
    policy = {"model": str(base), "max_model_len": 256, "vllm": {"urls": [vllm]}}
    recipe = project.recipe(agent="dialects:solve", policies={"policy": policy}, step_rewards=[])
    done = project.cli("train", str(recipe), timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    return project


def test_every_version_that_vllm_serves_is_the_trainers(trained: Project) -> None:
    lines = trained.metrics()
    assert [line["policy_version"] for line in lines] == [0, 1, 2, 3]
    assert all(line["probe/max_abs_difference"] < 1e-4 for line in lines)
    assert all(line["actor/log_prob_gap"] < 1e-4 for line in lines[1:])
    assert lines[-1]["train/tokens"] > 0


@pytest.mark.parametrize("version", [0, 2])
async def test_calls_of_every_dialect_are_recorded_as_vllm_sampled_them(
    trained: Project, base: Path, version: int
) -> None:
    """A plain transformers forward of the version's weights gives the recorded log-probs to 1e-4."""
    checkpoint = trained.run / "checkpoints" / f"iteration-{version:06d}" / "huggingface"
    folder = checkpoint if version else base
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    dialects: set[str] = set()
    for one in await _calls(trained, iteration=version + 1):
        assert one.call is not None
        assert (one.call.version_start, one.call.version_end) == (version, version)
        dialects.add(one.call.dialect)
        prompt, sampled = one.prompt_ids.tolist(), one.token_ids.tolist()
        assert prompt
        assert sampled
        with torch.no_grad():
            scores = torch.log_softmax(model(torch.tensor([prompt + sampled])).logits[0], -1)
        at = torch.arange(len(prompt) - 1, len(prompt) + len(sampled) - 1)
        expected = scores[at, torch.tensor(sampled)].numpy()
        assert np.abs(expected - one.logprobs).max() < 1e-4
    assert dialects == {"chat", "responses", "completions"}


def test_the_table_of_fields_says_what_vllm_refuses(vllm: str) -> None:
    wrong = [
        row.name
        for row in ENGINE_FIELDS
        if is_refused(vllm, row, "policy") != (row.vllm is Does.REFUSED)
    ]
    assert wrong == []


def test_a_tied_head_that_went_stale_is_caught_by_the_probe(
    vllm: str, trained: Project, tmp_path: Path
) -> None:
    """vLLM's own reload leaves the old head in place on a CPU, and answers that all is well."""
    former = trained.run / "checkpoints" / "iteration-000001" / "huggingface"
    loaded = load_recipe(trained.folder / "recipe.yaml")
    servers = loaded.recipe.policies["policy"].vllm
    assert servers is not None
    engines = VllmEngines(
        loaded.recipe, "policy", servers, model=former, version=1, folder=tmp_path
    )  # fmt: skip
    (score,) = engines.scorers()
    backend = VerlBackend(
        BackendConfig(model_path=str(former), optimiser=Optimiser(learning_rate=1e-3))
    )
    body = {"method": "reload_weights", "kwargs": {"weights_path": str(former.resolve())}}
    request = urllib.request.Request(
        f"{vllm}/collective_rpc", json.dumps(body).encode(), {"content-type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            assert answer.status == 200
        with pytest.raises(WeightMismatch):
            probe(score, backend, tolerance=1e-3)
        asyncio.run(engines.open())
        assert probe(score, backend, tolerance=1e-3).max_abs_difference < 1e-4
    finally:
        backend.close()
        engines.close()


async def _calls(project: Project, *, iteration: int) -> list[Transition]:
    store = open_store(project.run / "store.db", read_only=True)
    try:
        query = RolloutQuery(
            run="quick", mode=Mode.TRAIN, iteration=iteration, states=(RolloutState.SUCCEEDED,)
        )
        last = [records[-1] for records in await read_attempts(store, await store.rollouts(query))]
        return [one for record in last for one in record.transitions if one.call]
    finally:
        await store.close()
