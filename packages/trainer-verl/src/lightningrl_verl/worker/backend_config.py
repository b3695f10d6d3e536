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
from typing import TYPE_CHECKING, Any, Literal, cast

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from lightningrl.errors import ConfigError
from lightningrl.recipe import Critic, Optimiser
from lightningrl.user_input.names import suggest
from lightningrl_verl.worker.honoured import FREE_FORM, refusal

if TYPE_CHECKING:
    from lightningrl_verl.worker.rollout_config import Rollout


SUPERVISED = "supervised"
"""The loss of a policy that imitates demonstrations (`VerlBackend.imitate`), and is given no advantages."""


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
    optimiser: Optimiser
    """The recipe's section."""
    loss: str = "ppo"
    """`algorithm.loss` of the recipe, or `SUPERVISED`."""
    train_last: int | None = None
    """Layers from the last on that are trained, with the norm behind them. `None`: all weights are."""
    ranks: int = 1
    """Processes that hold a shard each; whoever launches them fills it in."""
    total_iterations: int = 1
    """Updates of the whole run: where the schedule ends."""
    max_tokens_per_micro_batch: int = 2048
    """Tokens of one forward and backward pass, padding included; a longer row makes a pass of its
    own. 2048 is the fastest for small models on a CPU; an accelerator takes 16384 and more."""
    seed: int = 0
    """Of what is random in an update: dropout, where the model has any."""
    rollout: Rollout | None = None
    """The engines that verl manages for this policy. `None`: others serve it."""
    overrides: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """verl's own keys by their dotted name under `actor_rollout_ref`, or nested; they win over the fields."""

    def __post_init__(self) -> None:
        """Have all overrides under their dotted names."""
        object.__setattr__(self, "overrides", dotted(self.overrides))

    @property
    def weights_in_export(self) -> bool:
        """Whether a checkpoint's export holds the very weights that training goes on with."""
        return self.ranks == 1 and not self.overrides.get("model.lora_rank")


def compose_verl_config(config: BackendConfig) -> DictConfig:
    """The configuration of verl with the recipe's fields, then its overrides, put in.

    Returns:
        The whole of `ppo_trainer`; verl's workers take its `actor_rollout_ref`.

    Raises:
        ConfigError: an override is unknown, of the wrong type, or not honoured by our loop.
    """
    check_overrides(config.overrides)
    composed = copy.deepcopy(_verl_defaults())
    _put(composed.actor_rollout_ref, _settings(config) | dict(config.overrides))
    return composed


def compose_critic_config(config: BackendConfig, critic: Critic) -> DictConfig:
    """The configuration of verl's critic, for a policy that is trained as `config` says."""
    composed = copy.deepcopy(_verl_defaults()).critic
    _put(composed, _critic_settings(config, critic))
    return composed


def _put(tree: DictConfig, settings: Mapping[str, Any]) -> None:
    for key, value in settings.items():
        plain: Any = list(value) if isinstance(value, tuple) else value
        OmegaConf.update(tree, key, plain, force_add=True)


def check_overrides(overrides: Mapping[str, Any]) -> None:
    """Check overrides against verl's own configuration, without building anything.

    Raises:
        ConfigError: an override is unknown, of the wrong type, or not honoured by our loop.
    """
    if not overrides:
        return
    schema = dict(_flatten(_verl_defaults().actor_rollout_ref))
    for key, value in dotted(overrides).items():
        reason = refusal(key)
        if reason is not None:
            raise ConfigError(f"verl key {key!r} is not honoured: {reason}")
        if any(key == name or key.startswith(f"{name}.") for name in FREE_FORM):
            continue
        if key not in schema:
            usable = [name for name in schema if refusal(name) is None]
            raise ConfigError(
                f"verl has no key {key!r} under actor_rollout_ref.{suggest(key, usable)}"
            )
        _check_type(key, value, schema[key])


def dotted(overrides: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Overrides by their dotted names, of which a later one wins; what stands below a name of `FREE_FORM` stays."""
    flat: dict[str, Any] = {}
    for name, value in overrides.items():
        key = f"{prefix}{name}"
        below: dict[str, Any] = {key: value}
        if isinstance(value, Mapping) and value and key not in FREE_FORM:
            below = dotted(cast("Mapping[str, Any]", value), f"{key}.")
        for one, of_one in below.items():
            flat.pop(one, None)
            flat[one] = of_one
    return flat


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
    optimiser = config.optimiser
    return {
        **_model_settings(config),
        "actor.strategy": "fsdp2",
        "actor.loss_agg_mode": "token-sum",
        "actor.policy_loss.loss_mode": (
            "vanilla" if config.loss in ("ppo", SUPERVISED) else config.loss
        ),
        "actor.clip_ratio_low": optimiser.clip_low,
        "actor.clip_ratio_high": optimiser.clip_high,
        "actor.entropy_coeff": optimiser.entropy_coeff,
        "actor.kl_loss_coef": optimiser.kl_coeff,
        "actor.kl_loss_type": optimiser.kl_estimator,
        "actor.use_dynamic_bsz": True,
        "actor.ppo_max_token_len_per_gpu": tokens,
        # The export is ours; where its weights are what training goes on with, they are kept once.
        "actor.checkpoint.save_contents": ["model", "optimizer", "extra"],
        "actor.checkpoint.load_contents": ([] if config.weights_in_export else ["model"])
        + ["optimizer", "extra"],
        "actor.optim.lr": optimiser.learning_rate,
        "actor.optim.total_training_steps": config.total_iterations,
        "actor.optim.betas": optimiser.betas,
        "actor.optim.weight_decay": optimiser.weight_decay,
        "actor.optim.clip_grad": optimiser.grad_clip,
        **_rollout_settings(config),
        "actor.use_torch_compile": False,
        "ref.use_torch_compile": False,
        **_engine_settings("actor.fsdp_config", config),
        **_engine_settings("ref.fsdp_config", config),
    }


def _rollout_settings(config: BackendConfig) -> dict[str, Any]:
    if config.rollout is None:
        # verl's workers read these whoever generates.
        return {"rollout.name": "external", "rollout.tensor_model_parallel_size": 1}
    settings = {f"rollout.{key}": value for key, value in config.rollout.settings.items()}
    if config.overrides.get("model.lora_rank"):
        # Adapters are sent merged, as every engine takes them.
        settings["model.lora.merge"] = True
    return settings


def _critic_settings(config: BackendConfig, critic: Critic) -> dict[str, Any]:
    return {
        **_model_settings(config),
        "strategy": "fsdp2",
        "loss_agg_mode": "token-mean",
        "loss_scale_factor": None,
        "cliprange_value": critic.clip,
        "use_dynamic_bsz": True,
        "ppo_max_token_len_per_gpu": config.max_tokens_per_micro_batch,
        "checkpoint.save_contents": ["model", "optimizer", "extra"],
        "checkpoint.load_contents": ["model", "optimizer", "extra"],
        "optim.lr": critic.learning_rate,
        "optim.total_training_steps": 1,
        "optim.weight_decay": critic.weight_decay,
        "optim.clip_grad": critic.grad_clip,
        "profiler.tool": None,
        "profiler.tool_config": {},
        **_engine_settings("fsdp", config),
    }


def _model_settings(config: BackendConfig) -> dict[str, Any]:
    return {
        "model.path": config.model_path,
        # Kernels that need no package beyond torch; packing pays only with flash attention.
        "model.override_config.attn_implementation": "sdpa",
        "model.use_remove_padding": False,
        # Recomputation saves accelerator memory and costs a CPU a second forward pass.
        "model.enable_gradient_checkpointing": config.device == "cuda",
    }


def _engine_settings(engine: str, config: BackendConfig) -> dict[str, Any]:
    return {
        f"{engine}.model_dtype": "fp32",
        f"{engine}.mixed_precision": {
            "param_dtype": config.dtype,
            "reduce_dtype": "fp32",
            "buffer_dtype": "fp32",
        },
        f"{engine}.seed": config.seed,
        # torch.compile costs 15 s of start-up and serves the entropy only.
        f"{engine}.use_torch_compile": False,
        # Where one process holds all shards, freeing them after the forward pass saves nothing.
        f"{engine}.reshard_after_forward": config.ranks > 1,
    }
