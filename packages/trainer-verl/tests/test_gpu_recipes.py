"""The math benchmark's recipes for GPUs, as far as a machine without one can check them."""

import dataclasses
import tomllib
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
from tiny_rows import write_model

from lightningrl.errors import ConfigError
from lightningrl.recipe import LoadedRecipe, load_recipe
from lightningrl_verl.start.preflight import check, check_packages
from lightningrl_verl.worker.backend_config import compose_verl_config
from lightningrl_verl.worker.from_recipe import backend_config

ROOT = Path(__file__).parents[3]


@pytest.fixture(params=["gpu-1x80gb", "gpu-8x80gb"])
def recipe(request: pytest.FixtureRequest, tmp_path: Path) -> LoadedRecipe:
    """A recipe whose model is a folder that is there."""
    write_model(tmp_path, tied=True)
    path = ROOT / "benchmarks" / "math" / "recipes" / f"{request.param}.yaml"
    return load_recipe(path, [f"policies.policy.model={tmp_path}"])


def test_the_trainer_takes_it(recipe: LoadedRecipe):
    """Agent, reward, tasks, combinations of settings and verl's keys."""
    plan = check(recipe)
    assert plan.trained == ("policy",)
    assert (len(plan.splits.train), len(plan.splits.val)) == (2000, 200)


def test_verls_own_classes_take_what_it_asks_for(recipe: LoadedRecipe, tmp_path: Path):
    from verl.utils.config import omega_conf_to_dataclass
    from verl.workers.config import FSDPActorConfig, FSDPEngineConfig, FSDPOptimizerConfig

    config = backend_config(recipe.recipe, "policy", tmp_path)
    actor = omega_conf_to_dataclass(compose_verl_config(config).actor_rollout_ref.actor)
    assert isinstance(actor, FSDPActorConfig)
    assert isinstance(actor.optim, FSDPOptimizerConfig)
    assert isinstance(actor.engine, FSDPEngineConfig)
    assert actor.strategy == "fsdp2"
    assert actor.engine.mixed_precision["param_dtype"] == "bf16"
    assert actor.ppo_max_token_len_per_gpu == recipe.recipe.trainer.max_tokens_per_micro_batch
    assert actor.optim.lr == 1e-6
    assert dataclasses.is_dataclass(actor)


def test_verls_own_classes_take_its_engines(recipe: LoadedRecipe, tmp_path: Path):
    """One replica on each rank's GPU, which serves the policy by its alias and sleeps while the rank trains."""
    from verl.utils.config import omega_conf_to_dataclass
    from verl.workers.config import CheckpointEngineConfig, HFModelConfig, RolloutConfig

    composed = compose_verl_config(backend_config(recipe.recipe, "policy", tmp_path))
    rollout = omega_conf_to_dataclass(composed.actor_rollout_ref.rollout)
    assert isinstance(rollout, RolloutConfig)
    assert rollout.name == "vllm"
    assert rollout.tensor_model_parallel_size == 1
    assert rollout.n_gpus_per_node == recipe.recipe.trainer.ranks
    assert rollout.enable_sleep_mode
    assert rollout.free_cache_engine
    assert rollout.dtype == "bfloat16"
    assert rollout.gpu_memory_utilization == 0.6
    # No answer is cut but by the policy's own length.
    assert rollout.max_model_len == rollout.response_length == 4096
    assert rollout.logprobs_mode == "processed_logprobs"
    assert isinstance(rollout.checkpoint_engine, CheckpointEngineConfig)
    assert rollout.checkpoint_engine.backend == "naive"
    assert rollout.engine_kwargs["vllm"] == {
        "served_model_name": "policy",
        "enable_auto_tool_choice": True,
        "tool_call_parser": "hermes",
    }
    model = omega_conf_to_dataclass(composed.actor_rollout_ref.model)
    assert isinstance(model, HFModelConfig)
    assert model.local_path == str(tmp_path)


def test_engines_on_gpus_of_their_own_are_as_many_as_asked_for(tmp_path: Path):
    """verl divides all GPUs by those of one engine (`workers/rollout/llm_server.py:396`)."""
    from verl.utils.config import omega_conf_to_dataclass
    from verl.workers.config import RolloutConfig

    write_model(tmp_path, tied=True)
    changes = [
        f"policies.policy.model={tmp_path}",
        *("engine.placement=separate", "engine.replicas=3", "engine.tensor_parallel=2"),
        "engine.vllm.enforce_eager=true",
    ]
    path = ROOT / "benchmarks" / "math" / "recipes" / "gpu-8x80gb.yaml"
    config = backend_config(load_recipe(path, changes).recipe, "policy", tmp_path)
    rollout = omega_conf_to_dataclass(compose_verl_config(config).actor_rollout_ref.rollout)
    assert isinstance(rollout, RolloutConfig)
    assert rollout.nnodes * rollout.n_gpus_per_node // rollout.tensor_model_parallel_size == 3
    assert not rollout.enable_sleep_mode
    assert rollout.checkpoint_engine.backend == "lightningrl_broadcast"
    assert rollout.engine_kwargs["vllm"]["enforce_eager"] is True


def test_adapters_reach_the_engines_merged(recipe: LoadedRecipe, tmp_path: Path):
    from verl.utils.config import omega_conf_to_dataclass
    from verl.workers.config import HFModelConfig

    config = replace(
        backend_config(recipe.recipe, "policy", tmp_path), overrides={"model.lora_rank": 8}
    )
    model = omega_conf_to_dataclass(compose_verl_config(config).actor_rollout_ref.model)
    assert isinstance(model, HFModelConfig)
    assert model.lora["merge"] is True


def test_vllm_is_demanded_before_anything_starts(recipe: LoadedRecipe):
    if find_spec("vllm") is not None:
        check_packages(recipe.recipe)
        return
    with pytest.raises(ConfigError, match="vLLM is not installed; install lightningrl-verl with"):
        check_packages(recipe.recipe)


def test_the_lock_holds_vllm_for_the_extra():
    lock = tomllib.loads((ROOT / "uv.lock").read_text())
    packages = {one["name"]: one for one in lock["package"]}
    extra = packages["lightningrl-verl"]["optional-dependencies"]["vllm"]
    assert [(one["name"], one["extra"]) for one in extra] == [("verl", ["vllm"])]
    (of_verl,) = [
        one for one in packages["verl"]["optional-dependencies"]["vllm"] if one["name"] == "vllm"
    ]
    assert of_verl["name"] in packages
    # File transfers need vLLM's routes for weight updates, which are there from 0.22 on.
    assert tuple(map(int, packages["vllm"]["version"].split(".")[:2])) >= (0, 22)
