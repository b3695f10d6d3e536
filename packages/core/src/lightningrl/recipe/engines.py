"""Which engines a recipe may ask for, by device, cluster and policies."""

from __future__ import annotations

from collections.abc import Mapping

from lightningrl.errors import ConfigError
from lightningrl.recipe.policy import PolicyRecipe
from lightningrl.recipe.processes import Engine, Trainer

_COMPACT = "compact"
"""The parser of tool calls that only the embedded engine has."""


_GIVEN = {
    "data_parallel_size": "engine.replicas",
    "dtype": "trainer.dtype",
    "enable_auto_tool_choice": "policies.NAME.tool_parser",
    "enable_lora": "verl: {model.lora_rank: ...}; adapters are sent merged",
    "enable_sleep_mode": "engine.placement",
    "gpu_memory_utilization": "engine.gpu_memory_share",
    "load_format": "policies.NAME.model",
    "logprobs_mode": "sampling.train.temperature",
    "max_model_len": "policies.NAME.max_model_len",
    "max_num_seqs": "engine.slots",
    "model": "policies.NAME.model",
    "override_generation_config": "sampling",
    "pipeline_parallel_size": "engine.tensor_parallel",
    "seed": "seed",
    "served_model_name": "policies",
    "tensor_parallel_size": "engine.tensor_parallel",
    "tool_call_parser": "policies.NAME.tool_parser",
    "worker_extension_cls": "engine.placement",
}
"""vLLM's arguments that follow other keys, which would otherwise say one thing and do another."""


def check_engines(
    engine: Engine, policies: Mapping[str, PolicyRecipe], trainer: Trainer, *, in_cluster: bool
) -> None:
    """Check what types can't say about a recipe's engines.

    Raises:
        ConfigError: no engine would be started, a key has no effect, or these engines can't be placed so.
    """
    here = {
        alias: policy
        for alias, policy in policies.items()
        if policy.vllm is None and policy.url is None
    }
    by_vllm = any(policy.vllm is not None for policy in policies.values())
    if by_vllm and not here and engine != Engine():
        raise ConfigError(
            "engine: every policy is served by vLLM or at a url, so none of its keys has an effect"
        )
    if engine.backend == "torch":
        _check_torch(engine)
    if not engine.managed:
        if engine.backend == "vllm":
            raise ConfigError(
                "engine.backend: vLLM is started by verl in a Ray cluster; set 'cluster: ray' and"
                " 'engine.placement: colocated' or 'separate', or name servers of your own by"
                " 'policies.NAME.vllm.urls'"
            )
        return
    if not in_cluster:
        raise ConfigError(
            f"engine.placement: {engine.placement} engines live in a Ray cluster; set 'cluster: ray'"
        )
    _check_managed(engine, here, trainer)


def _check_torch(engine: Engine) -> None:
    for key in ("tensor_parallel", "gpu_memory_share", "vllm"):
        if getattr(engine, key) != getattr(Engine(), key):
            raise ConfigError(f"engine.{key}: only vLLM reads it; set 'engine.backend: vllm'")


def _check_managed(engine: Engine, here: Mapping[str, PolicyRecipe], trainer: Trainer) -> None:
    if len(here) != 1 or not all(policy.trainable for policy in here.values()):
        raise ConfigError(
            "engine.placement: verl manages the engines of one policy, which is trained; serve others by"
            " their 'url', or by 'vllm.urls'"
        )
    if engine.backend == "vllm":
        _check_vllm(engine, next(iter(here.items())), trainer)
    elif trainer.device != "cpu":
        raise ConfigError(
            "engine.backend: in a cluster the torch engine runs on CPUs; set 'engine.backend: vllm', or"
            " 'engine.placement: local'"
        )
    if engine.placement == "colocated":
        _check_colocated(engine, trainer)


def _check_vllm(engine: Engine, served: tuple[str, PolicyRecipe], trainer: Trainer) -> None:
    alias, policy = served
    if trainer.device != "cuda":
        raise ConfigError(
            "engine.backend: verl's vLLM runs on GPUs; set 'trainer.device: cuda', or"
            " 'engine.backend: torch'"
        )
    if engine.threads != Engine().threads:
        raise ConfigError("engine.threads: only the torch engine reads it; leave it out")
    if not 0 < engine.gpu_memory_share < 1:
        raise ConfigError(
            f"engine.gpu_memory_share: must be between 0 and 1, not {engine.gpu_memory_share}"
        )
    for name in engine.vllm:
        given = _GIVEN.get(name.replace("-", "_"))
        if given is not None:
            raise ConfigError(f"engine.vllm: {name!r} follows {given!r}; set that")
    if policy.tool_parser == _COMPACT:
        raise ConfigError(
            f"policies.{alias}.tool_parser: vLLM has no parser {_COMPACT!r}; name one of its own, such as"
            " 'hermes'"
        )


def _check_colocated(engine: Engine, trainer: Trainer) -> None:
    if engine.replicas * engine.tensor_parallel != trainer.ranks:
        raise ConfigError(
            f"engine.replicas: colocated engines share the devices of all ranks, so {engine.replicas}"
            f" replica(s) of 'engine.tensor_parallel: {engine.tensor_parallel}' don't fit"
            f" 'trainer.ranks: {trainer.ranks}'; their product must be that number"
        )
    of_machine = trainer.ranks // trainer.nodes
    if of_machine % engine.tensor_parallel:
        raise ConfigError(
            f"engine.tensor_parallel: the {of_machine} rank(s) of a machine can't be cut into engines of"
            f" {engine.tensor_parallel}"
        )
