"""Engine replicas: real processes that hold one set of weights, whatever is killed.

The test runs in a warm process, whose children are forked (`tests/warm_children.py`): so a replica's start costs no import.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
import torch
from tiny_rows import sequences, write_model
from warm_process import WarmProcess

from lightningrl.recipe import Recipe, parse_recipe
from lightningrl_verl.serving.probe import WeightMismatch, held, probe
from lightningrl_verl.serving.replicas import Replicas
from lightningrl_verl.worker.backend import VerlBackend
from lightningrl_verl.worker.from_recipe import backend_config
from lightningrl_verl.worker.learner import Learner

PROGRAM = """
import asyncio, runpy, sys
from pathlib import Path
checks = runpy.run_path(sys.argv[1])
asyncio.run(checks["check"](Path.cwd()))
"""


def _recipe(model: Path) -> Recipe:
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


def test_all_replicas_follow_the_trainer_and_a_killed_one_comes_back_as_it_was(
    tmp_path: Path,
) -> None:
    said = tmp_path / "said.txt"
    process = WarmProcess(
        PROGRAM, [__file__], folder=tmp_path, environment=os.environ, outputs=(said, said)
    )
    try:
        assert process.wait(200) == 0, said.read_text()
    finally:
        process.kill_all()


async def check(folder: Path) -> None:
    """What the test above claims; `folder` is empty."""
    torch.set_num_threads(1)
    model = write_model(folder / "model", tied=True)
    recipe = _recipe(model)
    assert recipe.algorithm is not None
    config = backend_config(recipe, "policy", model)
    # torch 2.11 crashes in a process whose first sharded model was built on a thread that has ended.
    VerlBackend(config).close()
    with ThreadPoolExecutor(1) as thread:
        learner = Learner(thread, recipe.algorithm)
        await learner.start(config, None, None, 1)
        await _follow(recipe, model, learner, folder)


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


async def _follow(recipe: Recipe, model: Path, learner: Learner, folder: Path) -> None:
    place = folder / "engines"
    replicas = Replicas(recipe, "policy", model=model, version=0, place=place, logs=folder)
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
