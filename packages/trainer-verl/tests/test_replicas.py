"""Engine replicas: real processes that hold one set of weights, whatever is killed."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import urllib.error
import urllib.request
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
import pytest_asyncio
import torch
from tiny_rows import sequences, write_model

from lightningrl.recipe import Recipe, parse_recipe
from lightningrl_verl.serving.probe import WeightMismatch, held, probe
from lightningrl_verl.serving.replicas import Replicas
from lightningrl_verl.worker.backend import VerlBackend
from lightningrl_verl.worker.from_recipe import backend_config
from lightningrl_verl.worker.learner import Learner

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"), tied=True)


@pytest.fixture(scope="module")
def recipe(model: Path) -> Recipe:
    return parse_recipe(
        {
            "name": "demo",
            "agent": "a:b",
            "policies": {"policy": {"model": str(model), "max_model_len": 64}},
            "engine": {"replicas": 2, "slots": 4},
            "algorithm": {"iterations": 4, "tasks_per_iteration": 2, "group_size": 2},
            "optimiser": {"learning_rate": 0.01},
        }
    )


@pytest_asyncio.fixture
async def learner(recipe: Recipe, model: Path) -> AsyncIterator[Learner]:
    assert recipe.algorithm is not None
    config = backend_config(recipe, "policy", model)
    # torch 2.11 crashes in a process whose first sharded model was built on a thread that has ended.
    VerlBackend(config).close()
    with ThreadPoolExecutor(1) as thread:
        one = Learner(thread, recipe.algorithm)
        await one.start(config, None, None, 1)
        yield one


async def _probe(replicas: Replicas, learner: Learner) -> list[float]:
    scorers = replicas.scorers()
    found = await learner.call(lambda one: [probe(each, one, tolerance=1e-4) for each in scorers])
    holds = await learner.call(lambda one: held(one.named_parameters(), torch.float32))
    same = [one == holds.digest for one in await replicas.digests(holds.names)]
    assert all(same) == (max(result.max_abs_difference for result in found) < 1e-4)
    return [result.max_abs_difference for result in found]


def _processes() -> list[psutil.Process]:
    return [
        one
        for one in psutil.Process().children()
        if "lightningrl_verl.engine.replica" in one.cmdline()
    ]


def _complete(url: str) -> int:
    """Status of an answer."""
    body = {"model": "policy", "prompt": [1, 2, 3], "max_tokens": 2}
    request = urllib.request.Request(
        f"{url}/completions", json.dumps(body).encode(), {"content-type": "application/json"}
    )
    with urllib.request.urlopen(request) as response:
        return response.status


async def test_all_replicas_follow_the_trainer_and_a_killed_one_comes_back_as_it_was(
    recipe: Recipe, model: Path, learner: Learner, tmp_path: Path
) -> None:
    place = tmp_path / "engines"
    replicas = Replicas(recipe, "policy", model=model, version=0, place=place, logs=tmp_path)
    try:
        endpoints = await replicas.open()
        assert len({one.url for one in endpoints}) == 2
        assert await asyncio.gather(*(asyncio.to_thread(_complete, e.url) for e in endpoints)) == [
            200, 200,
        ]  # fmt: skip
        assert max(await _probe(replicas, learner)) < 1e-4

        rows = sequences(4)
        await learner.call(lambda one: one.update(rows, one.log_probs(rows)))
        with pytest.raises(WeightMismatch):
            await _probe(replicas, learner)
        await replicas.take_weights(learner, 1)
        assert replicas.version == 1
        assert max(await _probe(replicas, learner)) < 1e-4

        first, second = _processes()
        os.kill(first.pid, signal.SIGKILL)
        # Swapped in while one of them is being started again.
        await learner.call(lambda one: one.update(rows, one.log_probs(rows)))
        await replicas.take_weights(learner, 2)
        assert max(await _probe(replicas, learner)) < 1e-4
        assert second in _processes()
        assert first not in _processes()
        assert await asyncio.to_thread(_complete, endpoints[0].url) == 200
        # One file of weights is kept, beside the model that replicas are started with.
        assert {one.name for one in place.iterdir()} == {
            "model", "version-2.safetensors",
        }  # fmt: skip

        request = urllib.request.Request(
            endpoints[0].url.removesuffix("/v1") + "/replica/weights", b"{}", {}
        )
        with pytest.raises(urllib.error.HTTPError) as refused:
            await asyncio.to_thread(urllib.request.urlopen, request)
        assert refused.value.code == 403
        refused.value.close()
    finally:
        await asyncio.to_thread(replicas.close)
    assert _processes() == []
    assert not place.exists()
