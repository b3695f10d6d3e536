"""Engines that verl manages in a real Ray: the embedded engine in vLLM's place, on the path that vLLM takes."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import ray
import torch
from tiny_rows import sequences, write_model

from lightningrl.errors import RunError
from lightningrl.recipe import Recipe, parse_recipe
from lightningrl_verl.cluster.ray_ranks import RayRanks
from lightningrl_verl.serving.managed_engines import ManagedEngines
from lightningrl_verl.serving.probe import WeightMismatch, probe
from lightningrl_verl.worker.from_recipe import backend_config
from lightningrl_verl.worker.learner import Learner

torch.set_num_threads(1)

# Ray's processes take their time to start where the machine has other work.
pytestmark = pytest.mark.timeout(900)


def recipe_of(model: Path, placement: str, **verl: Any) -> Recipe:
    return parse_recipe(
        {
            "name": "demo",
            "agent": "a:b",
            "policies": {"policy": {"model": str(model), "max_model_len": 64}},
            "cluster": "ray",
            "trainer": {"ranks": 2},
            "engine": {"placement": placement, "replicas": 2, "slots": 4},
            "algorithm": {"iterations": 4, "tasks_per_iteration": 2, "group_size": 2},
            "optimiser": {"learning_rate": 0.01},
            "verl": verl,
        }
    )


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"), tied=True)


@pytest.fixture(scope="module")
def thread() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as one:
        yield one


@pytest.fixture(scope="module")
def ranks(thread: ThreadPoolExecutor, model: Path) -> Iterator[RayRanks]:
    recipe = recipe_of(model, "separate")  # these need more room
    started = thread.submit(RayRanks, recipe.trainer, None, recipe.engine).result()
    yield started
    thread.submit(started.close).result()


async def _probe(engines: ManagedEngines, learner: Learner) -> list[float]:
    scorers = engines.scorers()
    found = await learner.call(lambda one: [probe(each, one, tolerance=1e-4) for each in scorers])
    return [result.max_abs_difference for result in found]


def _complete(url: str) -> Any:
    """The answer's first choice, or the status of a refusal."""
    body = {"model": "policy", "prompt": [1, 2, 3], "max_tokens": 2}
    request = urllib.request.Request(
        f"{url}/completions", json.dumps(body).encode(), {"content-type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request) as response:
            return json.load(response)["choices"][0]
    except urllib.error.HTTPError as error:
        with error:
            return error.code


async def _update(learner: Learner) -> None:
    rows = sequences(4)
    await learner.call(lambda one: one.update(rows, one.log_probs(rows)))


@pytest_asyncio.fixture
async def learner_of(
    thread: ThreadPoolExecutor, ranks: RayRanks, model: Path
) -> AsyncIterator[Callable[[Recipe], Awaitable[Learner]]]:
    """Makes learners of a recipe."""
    made: list[Learner] = []

    async def make(recipe: Recipe) -> Learner:
        assert recipe.algorithm is not None
        one = Learner(thread, recipe.algorithm, ranks)
        await one.start(backend_config(recipe, "policy", model), None, None, 1)
        made.append(one)
        return one

    yield make
    for one in made:
        await one.call(lambda backend: backend.close())


@pytest.mark.long
async def test_separate_engines_serve_all_the_time_and_are_sent_the_weights(
    model: Path, learner_of: Callable[[Recipe], Awaitable[Learner]], thread: ThreadPoolExecutor
) -> None:
    """Of adapters, which reach them merged."""
    recipe = recipe_of(model, "separate", **{"model.lora_rank": 4, "model.lora_alpha": 8})
    learner = await learner_of(recipe)
    engines = ManagedEngines(recipe, "policy", learner, 0, thread)
    try:
        endpoints = await engines.open()
        assert max(await _probe(engines, learner)) < 1e-4
        await engines.sleep()
        answers = [await asyncio.to_thread(_complete, one.url) for one in endpoints]
        assert [one["finish_reason"] for one in answers] == ["length", "length"]
        for version in (1, 2):
            await _update(learner)
            with pytest.raises(WeightMismatch):
                await _probe(engines, learner)
            await engines.take_weights(learner, version)
            assert max(await _probe(engines, learner)) < 1e-4
    finally:
        await asyncio.to_thread(engines.close)


async def test_colocated_engines_sleep_while_the_ranks_train_and_wake_with_their_weights(
    model: Path, learner_of: Callable[[Recipe], Awaitable[Learner]], thread: ThreadPoolExecutor
) -> None:
    """The last one here: an engine is killed."""
    recipe = recipe_of(model, "colocated")
    learner = await learner_of(recipe)
    engines = ManagedEngines(recipe, "policy", learner, 3, thread)
    try:
        first, second = await engines.open()
        assert first.url != second.url
        assert first.url.startswith("http://127.0.0.1:")
        assert max(await _probe(engines, learner)) < 1e-4

        await engines.sleep()
        assert [await asyncio.to_thread(_complete, one.url) for one in (first, second)] == [
            503, 503,
        ]  # fmt: skip
        await _update(learner)
        await engines.take_weights(learner, 4)
        assert max(await _probe(engines, learner)) < 1e-4
        answer = await asyncio.to_thread(_complete, second.url)
        assert [span["version"] for span in answer["weight_versions"]] == [4]

        await _update(learner)
        with pytest.raises(WeightMismatch):
            await _probe(engines, learner)
        await engines.take_weights(learner, 5)
        assert max(await _probe(engines, learner)) < 1e-4

        # Slept for nothing: the same weights come back under the same version.
        await engines.sleep()
        await engines.take_weights(learner, 5)
        assert max(await _probe(engines, learner)) < 1e-4

        watch = asyncio.create_task(engines.watch())
        pid = ray.get(ray.get_actor("torch_server_1_0").__ray_call__.remote(lambda _: os.getpid()))
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(
            RunError, match="an engine, or a rank that it takes weights from, has died"
        ):
            await watch
    finally:
        await asyncio.to_thread(engines.close)
