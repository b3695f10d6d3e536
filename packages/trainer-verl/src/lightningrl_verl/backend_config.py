"""What the recipe says about training, as one frozen value, and as verl's configuration.

Invariant: a key of verl's that a user sets either takes effect or is refused with the reason; an
unknown one is an error that names the nearest. Checking imports neither verl nor torch.
"""

from __future__ import annotations

import copy
import functools
import importlib.util
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from lightningrl.errors import ConfigError
from lightningrl.nearest import suggest
from lightningrl_verl.honoured import FREE_FORM, refusal
from lightningrl_verl.schedule import Schedule


@dataclass(frozen=True, kw_only=True)
class BackendConfig:
    """How the policy is trained. Immutable, so that a checkpoint's settings can be compared."""

    model_path: str
    """Folder (or hub name) of the policy's initial weights and tokenizer."""
    device: Literal["cpu", "cuda"] = "cpu"
    dtype: Literal["fp32", "bf16"] = "fp32"
    """Of the forward and backward pass; weights and optimizer state are always fp32."""
    temperature: float = 1.0
    """What rollouts are sampled at; log-probs are those of the tempered distribution."""
    learning_rate: float = 1e-6
    """After the warm-up."""
    total_iterations: int = 1
    """Updates of the whole run: where the schedule ends."""
    warmup: int = 0
    """First updates, over which the learning rate rises linearly."""
    lr_schedule: Schedule = "constant"
    min_lr_ratio: float = 0.0
    """What "linear" and "cosine" end at, as a fraction of `learning_rate`."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Of AdamW."""
    weight_decay: float = 0.01
    grad_clip: float = 1.0
    """Largest norm of the gradient."""
    clip_low: float = 0.2
    """PPO clips the ratio below 1 - clip_low."""
    clip_high: float = 0.2
    """PPO clips the ratio above 1 + clip_high."""
    max_tokens_per_micro_batch: int = 2048
    """Tokens of one forward and backward pass, padding included; a longer row makes a pass of its
    own. 2048 is the fastest for small models on a CPU; an accelerator takes 16384 and more."""
    ppo_epochs: int = 1
    """How often an update goes over its rows."""
    mini_batches: int = 1
    """Optimizer steps per epoch, at most: rows are cut evenly, in order."""
    entropy_coeff: float = 0.0
    """Bonus on the mean entropy of trained tokens; 0 does not compute it."""
    use_kl_loss: bool = False
    """Keep a frozen copy of the initial weights, and penalise the divergence from it."""
    kl_coef: float = 0.001
    """Penalty on the mean divergence of trained tokens; used with `use_kl_loss` only."""
    seed: int = 0
    """Of what is random in an update: dropout, where the model has any."""
    overrides: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """verl's own keys by their dotted name under `actor_rollout_ref`; they win over the fields."""


def compose_verl_config(config: BackendConfig) -> DictConfig:
    """The configuration of verl with the recipe's fields, then its overrides, put in.

    Returns:
        The whole of `ppo_trainer`; verl's workers take its `actor_rollout_ref`.

    Raises:
        ConfigError: an override is unknown, of the wrong type, or not honoured by our loop.
    """
    check_overrides(config.overrides)
    composed = copy.deepcopy(_verl_defaults())
    settings = _settings(config) | dict(config.overrides)
    for key, value in settings.items():
        plain: Any = list(value) if isinstance(value, tuple) else value
        OmegaConf.update(composed.actor_rollout_ref, key, plain, force_add=True)
    return composed


def check_overrides(overrides: Mapping[str, Any]) -> None:
    """Check overrides against verl's own configuration, without building anything.

    Raises:
        ConfigError: an override is unknown, of the wrong type, or not honoured by our loop.
    """
    if not overrides:
        return
    schema = dict(_flatten(_verl_defaults().actor_rollout_ref))
    for key, value in overrides.items():
        reason = refusal(key, value)
        if reason is not None:
            raise ConfigError(f"verl key {key!r} is not honoured: {reason}")
        if any(key == name or key.startswith(f"{name}.") for name in FREE_FORM):
            continue
        if key not in schema:
            usable = [name for name in schema if refusal(name, schema[name]) is None]
            raise ConfigError(
                f"verl has no key {key!r} under actor_rollout_ref.{suggest(key, usable)}"
            )
        _check_type(key, value, schema[key])


@functools.cache
def _verl_defaults() -> DictConfig:
    spec = importlib.util.find_spec("verl")
    if spec is None or spec.origin is None:
        raise ConfigError("verl is not installed; install lightningrl-verl with its dependencies")
    folder = Path(spec.origin).parent / "trainer" / "config"
    with initialize_config_dir(str(folder), version_base=None):
        return compose("ppo_trainer")


def _flatten(node: DictConfig, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every key below `node` with its default, groups excluded unless empty; unresolved ones are None."""
    for name in map(str, node):
        key = f"{prefix}{name}"
        if OmegaConf.is_missing(node, name) or OmegaConf.is_interpolation(node, name):
            yield key, None
            continue
        child = node[name]
        if isinstance(child, DictConfig) and len(child) > 0:
            yield from _flatten(child, f"{key}.")
        elif name != "_target_":
            yield key, child


def _check_type(key: str, value: object, default: object) -> None:
    kinds: tuple[tuple[type, ...], ...] = ((bool,), (int, float), (str,))
    for kind in kinds:
        of_kind = isinstance(default, kind) and (kind == (bool,) or not isinstance(default, bool))
        if not of_kind or value is None:
            continue
        if not isinstance(value, kind) or (isinstance(value, bool) and kind != (bool,)):
            wanted = " or ".join(t.__name__ for t in kind)
            raise ConfigError(
                f"verl key {key!r} takes {wanted} (default {default!r}), not {value!r}"
            )


def _settings(config: BackendConfig) -> dict[str, Any]:
    tokens = config.max_tokens_per_micro_batch
    return {
        "model.path": config.model_path,
        # Kernels that need no package beyond torch; packing pays only with flash attention.
        "model.override_config.attn_implementation": "sdpa",
        "model.use_remove_padding": False,
        # Recomputation saves accelerator memory and costs a CPU a second forward pass.
        "model.enable_gradient_checkpointing": config.device == "cuda",
        "actor.strategy": "fsdp2",
        "actor.loss_agg_mode": "token-sum",
        "actor.clip_ratio_low": config.clip_low,
        "actor.clip_ratio_high": config.clip_high,
        "actor.entropy_coeff": config.entropy_coeff,
        "actor.kl_loss_coef": config.kl_coef,
        "actor.use_dynamic_bsz": True,
        "actor.ppo_max_token_len_per_gpu": tokens,
        "actor.checkpoint.save_contents": ["model", "optimizer", "extra", "hf_model"],
        "actor.checkpoint.load_contents": ["model", "optimizer", "extra"],
        "actor.optim.lr": config.learning_rate,
        "actor.optim.total_training_steps": config.total_iterations,
        "actor.optim.betas": config.betas,
        "actor.optim.weight_decay": config.weight_decay,
        "actor.optim.clip_grad": config.grad_clip,
        # verl's workers read these whoever generates.
        "rollout.name": "external",
        "rollout.tensor_model_parallel_size": 1,
        **_engine_settings("actor", config),
        **_engine_settings("ref", config),
    }


def _engine_settings(role: Literal["actor", "ref"], config: BackendConfig) -> dict[str, Any]:
    return {
        f"{role}.fsdp_config.model_dtype": "fp32",
        f"{role}.fsdp_config.mixed_precision": {
            "param_dtype": config.dtype,
            "reduce_dtype": "fp32",
            "buffer_dtype": "fp32",
        },
        f"{role}.fsdp_config.seed": config.seed,
        # torch.compile costs 15 s of start-up and serves the entropy only.
        f"{role}.use_torch_compile": False,
        f"{role}.fsdp_config.use_torch_compile": False,
        # One process holds all shards: freeing them after the forward pass saves nothing.
        f"{role}.fsdp_config.reshard_after_forward": False,
    }
