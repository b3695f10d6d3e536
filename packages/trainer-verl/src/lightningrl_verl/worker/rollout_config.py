"""What the recipe says about the engines that verl manages, by the names of verl's `rollout`.

Invariant: an engine caps nothing that the gateway asks for, but the length that the recipe gives the policy.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from lightningrl.recipe import Recipe
from lightningrl_verl.engine.load import engine_settings

TORCH = "torch"
"""The embedded engine's name in verl's registries."""

BROADCAST = "lightningrl_broadcast"
"""Our checkpoint engine's name there."""

_BUCKET_MEGABYTES = {"vllm": 512, TORCH: 1024}
"""Of one transfer. vLLM takes a larger weight by itself; the embedded engine must find it in one, and shared
memory costs what is written to it."""

_DTYPES = {"fp32": "float32", "bf16": "bfloat16"}


@dataclass(frozen=True)
class Rollout:
    """Engines that verl manages for one policy."""

    settings: Mapping[str, Any]
    """verl's keys under `rollout`."""
    colocated: bool
    """Whether they share the ranks' devices, and sleep while those train."""


def rollout_of(recipe: Recipe, alias: str) -> Rollout | None:
    """Those of a policy. `None`: verl manages none for it."""
    engine, policy, trainer = recipe.engine, recipe.policies[alias], recipe.trainer
    if not engine.managed or policy.vllm is not None or policy.url is not None:
        return None
    colocated = engine.placement == "colocated"
    length = policy.max_model_len
    return Rollout(
        {
            "name": engine.backend,
            "tensor_model_parallel_size": engine.tensor_parallel,
            # Colocated ones are as many as fit the ranks; of separate ones each is on one machine.
            "n_gpus_per_node": trainer.ranks // trainer.nodes
            if colocated
            else engine.tensor_parallel,
            "nnodes": 0 if colocated else engine.replicas,
            "temperature": recipe.sampling.train.temperature,
            "prompt_length": length,
            "response_length": length,
            "max_model_len": length,
            "max_num_seqs": engine.slots,
            "seed": recipe.seed,
            "dtype": _DTYPES[trainer.precision],
            "gpu_memory_utilization": engine.gpu_memory_share,
            "enable_sleep_mode": colocated,
            "free_cache_engine": colocated,
            # They serve nothing before the first sync.
            "load_format": "dummy",
            "checkpoint_engine.backend": "naive" if colocated else BROADCAST,
            "checkpoint_engine.custom_backend_module": "lightningrl_verl.cluster.registered",
            "checkpoint_engine.update_weights_bucket_megabytes": _BUCKET_MEGABYTES[engine.backend],
            **(_vllm(recipe, alias) if engine.backend == "vllm" else _torch(recipe, alias)),
        },
        colocated,
    )


def _vllm(recipe: Recipe, alias: str) -> dict[str, Any]:
    arguments: dict[str, Any] = {**recipe.engine.vllm, "served_model_name": alias}
    parser = recipe.policies[alias].tool_parser
    if parser != "none":
        arguments |= {"enable_auto_tool_choice": True, "tool_call_parser": parser}
    return {"engine_kwargs.vllm": arguments}


def _torch(recipe: Recipe, alias: str) -> dict[str, Any]:
    return {
        "custom": {
            "name": alias,
            "tool_parser": recipe.policies[alias].tool_parser,
            "engine": msgspec.to_builtins(engine_settings(recipe, alias)),
        }
    }
