"""A policy on two ranks in a real Ray is the same as on one, in this process; so are the engines that verl manages.

The embedded engine stands in vLLM's place, on the path that vLLM takes.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio
import ray
import torch
from tiny_rows import Sequence, sequences, write_model
from transformers import AutoModelForCausalLM

from lightningrl.errors import RunError
from lightningrl.experience.trajectory import Row, Span
from lightningrl.recipe import Critic, Optimiser, Recipe, parse_recipe
from lightningrl.schema import RolloutId
from lightningrl_verl.cluster.ray_ranks import RayRanks
from lightningrl_verl.serving.managed_engines import ManagedEngines
from lightningrl_verl.serving.probe import WeightMismatch, probe
from lightningrl_verl.worker.backend import VerlBackend
from lightningrl_verl.worker.backend_config import SUPERVISED, BackendConfig
from lightningrl_verl.worker.critic import VerlCritic
from lightningrl_verl.worker.from_recipe import backend_config
from lightningrl_verl.worker.learner import Learner

torch.set_num_threads(1)

# Ray's processes take their time to start where the machine has other work.
pytestmark = pytest.mark.timeout(900)

PLAIN = Optimiser(learning_rate=1e-3)
EVERYTHING = Optimiser(
    learning_rate=1e-3, mini_batches=2, ppo_epochs=2, kl_coeff=0.5, entropy_coeff=0.1
)
ADAPTERS = {"model.lora_rank": 4, "model.lora_alpha": 8, "model.target_modules": "all-linear"}


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
    thread: ThreadPoolExecutor, ray_ranks: RayRanks, model: Path
) -> AsyncIterator[Callable[[Recipe], Awaitable[Learner]]]:
    """Makes learners of a recipe."""
    made: list[Learner] = []

    async def make(recipe: Recipe) -> Learner:
        assert recipe.algorithm is not None
        one = Learner(thread, recipe.algorithm, ray_ranks)
        await one.start(backend_config(recipe, "policy", model), None, None, 1)
        made.append(one)
        return one

    yield make
    for one in made:
        await one.call(lambda backend: backend.close())


@pytest.fixture(scope="module")
def ray_ranks(thread: ThreadPoolExecutor, model: Path) -> Iterator[RayRanks]:
    """Two ranks in a Ray with room for engines, which is started once for all of these."""
    recipe = recipe_of(model, "separate")  # these need more room
    started = thread.submit(RayRanks, recipe.trainer, None, recipe.engine).result()
    yield started
    thread.submit(started.close).result()


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> BackendConfig:
    model = write_model(tmp_path_factory.mktemp("model"), tied=False)
    return BackendConfig(
        model_path=str(model), optimiser=PLAIN, total_iterations=4, max_tokens_per_micro_batch=64
    )


def whole(backend: VerlBackend) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in backend.named_parameters()}


@pytest.mark.parametrize(
    ("optimiser", "overrides"),
    [
        pytest.param(PLAIN, {}, id="plain"),
        pytest.param(EVERYTHING, {}, id="kl, entropy, mini-batches"),
        pytest.param(PLAIN, {"model.use_remove_padding": True}, id="packed"),
        # Beside `test_adapters_are_merged_for_engines_and_in_the_export`.
        pytest.param(PLAIN, ADAPTERS, id="adapters", marks=pytest.mark.long),
    ],
)
def test_the_first_update_is_that_of_one_process(
    ray_ranks: RayRanks,
    config: BackendConfig,
    optimiser: Optimiser,
    overrides: dict[str, Any],
) -> None:
    """Of an odd number of rows, so that one rank has a filler."""
    config = replace(config, optimiser=optimiser, overrides=overrides)
    rows = sequences(7)
    one, two = VerlBackend(config), VerlBackend(config, ray_ranks)
    try:
        before = one.log_probs(rows)
        for ours, theirs in zip(before, two.log_probs(rows), strict=True):
            np.testing.assert_allclose(theirs, ours, atol=1e-5)
        alone, together = one.update(rows, before), two.update(rows, before)
        assert together["loss"] == pytest.approx(alone["loss"], rel=1e-5, abs=1e-6)
        assert together["grad_norm"] == pytest.approx(alone["grad_norm"], rel=1e-5)
        assert together == pytest.approx(alone, rel=1e-3, abs=1e-5)
        ours = whole(one)
        for name, weight in whole(two).items():
            torch.testing.assert_close(weight, ours[name], atol=2e-4, rtol=0)
    finally:
        one.close()
        two.close()


def test_one_row_for_two_ranks_weighs_as_much(ray_ranks: RayRanks, config: BackendConfig) -> None:
    """The second rank has nothing but a filler."""
    rows = sequences(1)
    one, two = VerlBackend(config), VerlBackend(config, ray_ranks)
    before = one.log_probs(rows)
    alone, together = one.update(rows, before), two.update(rows, before)
    assert together == pytest.approx(alone, rel=1e-5, abs=1e-6)


def test_a_supervised_step_is_that_of_one_process(
    ray_ranks: RayRanks, config: BackendConfig
) -> None:
    """Of an odd number of rows, so that one rank has a filler."""
    config = replace(config, loss=SUPERVISED)
    rows = sequences(5)
    one, two = VerlBackend(config), VerlBackend(config, ray_ranks)
    try:
        alone, together = one.imitate(rows), two.imitate(rows)
        assert together == pytest.approx(alone, rel=1e-5)
        ours = whole(one)
        for name, weight in whole(two).items():
            torch.testing.assert_close(weight, ours[name], atol=2e-4, rtol=0)
    finally:
        one.close()
        two.close()


def test_both_ranks_hold_the_same_whole_weights(ray_ranks: RayRanks, config: BackendConfig) -> None:
    two = VerlBackend(config, ray_ranks)
    rows = sequences(5)
    two.update(rows, two.log_probs(rows))

    def seen(worker: Any) -> dict[str, np.ndarray]:
        model = list(worker._models.values())[-1]
        sharded = model._engine.module.state_dict()
        return {name: one.full_tensor().numpy() for name, one in sharded.items()}

    first, second = ray.get([one.__ray_call__.remote(seen) for one in ray_ranks.group.workers])
    assert first.keys() == second.keys()
    for name, weight in first.items():
        np.testing.assert_array_equal(weight, second[name])
    for name, weight in two.named_parameters():
        np.testing.assert_array_equal(weight.numpy(), first[name])


@pytest.mark.parametrize("tied", [pytest.param(False, marks=pytest.mark.long), True])
def test_a_checkpoint_is_exact_on_as_many_ranks_and_its_weights_on_any(
    ray_ranks: RayRanks, config: BackendConfig, tmp_path: Path, tied: bool
) -> None:
    if tied:
        config = replace(config, model_path=str(write_model(tmp_path / "tied", tied=True)))
    two = VerlBackend(config, ray_ranks)
    for seed in (1, 2):
        rows = sequences(5, seed)
        two.update(rows, two.log_probs(rows))
    two.save(tmp_path / "of-two")
    rows = sequences(5, 3)
    expected = two.log_probs(rows)
    again, one = VerlBackend(config, ray_ranks), VerlBackend(config)
    assert again.load(tmp_path / "of-two")
    assert not one.load(tmp_path / "of-two")
    for ours, theirs in zip(expected, again.log_probs(rows), strict=True):
        np.testing.assert_array_equal(theirs, ours)
    for ours, theirs in zip(expected, one.log_probs(rows), strict=True):
        np.testing.assert_allclose(theirs, ours, atol=1e-5)
    went_on, resumed, moved = (each.update(rows, expected) for each in (two, again, one))
    assert resumed == pytest.approx(went_on, rel=1e-6)
    # The learning rate goes on as well: of four updates this is the third.
    assert moved["lr"] == went_on["lr"] == pytest.approx(1e-3 * (0.1 + 0.9 * 0.5))
    assert moved["grad_norm"] == pytest.approx(went_on["grad_norm"], rel=1e-5)
    exported = AutoModelForCausalLM.from_pretrained(
        tmp_path / "of-two" / "huggingface"
    ).state_dict()
    assert exported.keys() == whole(two).keys()

    one.save(tmp_path / "of-one")
    back = VerlBackend(config, ray_ranks)
    assert not back.load(tmp_path / "of-one")
    for name, weight in whole(back).items():
        torch.testing.assert_close(weight, whole(one)[name], atol=0, rtol=0)


def test_adapters_are_merged_for_engines_and_in_the_export(
    ray_ranks: RayRanks, config: BackendConfig, tmp_path: Path
) -> None:
    config = replace(config, overrides=ADAPTERS)
    two = VerlBackend(config, ray_ranks)
    base = AutoModelForCausalLM.from_pretrained(config.model_path).state_dict()
    rows = sequences(5)
    for _ in range(2):
        two.update(rows, two.log_probs(rows))
    merged = whole(two)
    assert merged.keys() == base.keys()
    changed = {name for name, weight in merged.items() if not torch.equal(weight, base[name])}
    assert changed
    assert all("proj" in name for name in changed)
    two.save(tmp_path)
    export = AutoModelForCausalLM.from_pretrained(tmp_path / "huggingface")
    for name, weight in export.state_dict().items():
        torch.testing.assert_close(weight, merged[name], atol=0, rtol=0)
    # What is served is what is trained.
    plain = VerlBackend(replace(config, model_path=str(tmp_path / "huggingface"), overrides={}))
    for ours, theirs in zip(two.log_probs(rows), plain.log_probs(rows), strict=True):
        np.testing.assert_allclose(theirs, ours, atol=1e-5)
    again = VerlBackend(config, ray_ranks)
    assert again.load(tmp_path)
    for ours, theirs in zip(two.log_probs(rows), again.log_probs(rows), strict=True):
        np.testing.assert_array_equal(theirs, ours)
    with pytest.raises(RunError, match="adapters that were trained on another number of ranks"):
        VerlBackend(config).load(tmp_path)


def _called(row: Sequence) -> Row:
    return Row(
        rollout_id=RolloutId(row.rollout_id),
        token_ids=row.token_ids,
        mask=row.mask,
        logprobs=np.zeros(len(row.mask), np.float32),
        advantages=row.advantages,
        spans=(Span(0, 4, 7), Span(1, 9, len(row.mask))),
    )


def test_a_critic_on_two_ranks_is_that_of_one(
    ray_ranks: RayRanks, config: BackendConfig, tmp_path: Path
) -> None:
    settings = Critic(learning_rate=1e-2, epochs=2)
    one, two = VerlCritic(config, settings), VerlCritic(config, settings, ray_ranks)
    rows = [_called(row) for row in sequences(5)]
    targets = [[1.0, -1.0]] * 5
    alone = one.update(rows, one.values(rows), targets)
    together = two.update(rows, two.values(rows), targets)
    assert together == pytest.approx(alone, rel=1e-4)
    assert np.ptp(two.values(rows)) > 0
    np.testing.assert_allclose(two.values(rows), one.values(rows), atol=1e-3)
    two.save(tmp_path)
    again = VerlCritic(config, settings)
    assert not again.load(tmp_path)
    np.testing.assert_allclose(again.values(rows), two.values(rows), atol=1e-5)


def test_an_error_of_a_rank_is_raised_as_it_is(
    ray_ranks: RayRanks, config: BackendConfig, tmp_path: Path
) -> None:
    two = VerlBackend(config, ray_ranks)
    with pytest.raises(RunError, match="no checkpoint in"):
        two.load(tmp_path)


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
    """One of them is killed in the end."""
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


def test_a_rank_that_was_killed_fails_the_next_call_by_name(
    ray_ranks: RayRanks, config: BackendConfig
) -> None:
    """The last one here, for the group is of no use afterwards."""
    two = VerlBackend(config, ray_ranks)
    pid = ray.get(ray_ranks.group.workers[1].__ray_call__.remote(lambda _: os.getpid()))
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(RunError, match="a trainer rank has died; the same command goes on"):
        two.log_probs(sequences(3))
