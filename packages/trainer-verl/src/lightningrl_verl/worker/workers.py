"""verl's workers, built in this process, whoever started it.

Invariant: verl's platform is chosen before anything else of verl runs, and the functions of verl that are
replaced here are replaced before a worker is built.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import torch

from lightningrl.errors import ConfigError
from lightningrl_verl.machine.quiet import quiet
from lightningrl_verl.worker.micro_batches import cut_by_padded_tokens
from lightningrl_verl.worker.process_group import (
    largest_of_all_ranks,
    rank_environment,
    start_process_group,
)
from lightningrl_verl.worker.shared_rows import cut_by_shared_tokens
from lightningrl_verl.worker.token_log_probs import token_log_probs

if TYPE_CHECKING:
    from omegaconf import DictConfig
    from tensordict import TensorDict
    from verl.workers.engine_workers import ActorRolloutRefWorker


def select_device(device: str) -> None:
    """Make verl run on `device` in this process.

    Raises:
        ConfigError: torch sees no such device, or verl already runs on another.
    """
    if device != "cpu" and not torch.cuda.is_available():
        raise ConfigError("device 'cuda' was asked for, but torch sees none; set device: cpu")
    select_platform(device)


def select_platform(device: str) -> None:
    """Make verl speak of `device`, which this process itself may lack, as a driver of others' may.

    Raises:
        ConfigError: verl already speaks of another.
    """
    with quiet():
        if device == "cpu":
            from lightningrl_verl import cpu

            cpu.activate()
            return
        from verl.plugin.platform import get_platform
    if get_platform().device_name != "cuda":
        raise ConfigError(
            "verl already runs on the CPU in this process; use one device per process"
        )


def policy_worker(
    settings: DictConfig,
    role: Literal["actor", "actor_rollout", "ref"],
    device: str,
    train_last: int | None = None,
) -> ActorRolloutRefWorker:
    """Build verl's worker of a policy, with its weights loaded.

    Args:
        settings: verl's `actor_rollout_ref`.
        role: an `actor_rollout` also speaks with the engine that shares its device.
        device: "cpu" or "cuda".
        train_last: layers from the last on that are trained. `None`: everything is.
    """
    with quiet(), rank_environment():
        start_process_group(device)
        _replace_slow_parts()
        from verl.workers.engine_workers import ActorRolloutRefWorker

        from lightningrl_verl.worker.language_engine import training_last

        worker = ActorRolloutRefWorker(settings, role=role)
        with training_last(train_last):
            worker.init_model()
        return worker


def critic_worker(settings: DictConfig, device: str) -> Any:
    """Build verl's worker of a value model, with its weights loaded; `settings` is verl's `critic`."""
    with quiet(), rank_environment():
        start_process_group(device)
        _replace_slow_parts()
        from verl.utils import model
        from verl.utils.config import omega_conf_to_dataclass
        from verl.workers.config import TrainingWorkerConfig
        from verl.workers.engine_workers import TrainingWorker
        from verl.workers.utils.losses import value_loss

        model.load_valuehead_model = _value_model
        critic: Any = omega_conf_to_dataclass(settings)
        critic.engine.max_token_len_per_gpu = critic.ppo_max_token_len_per_gpu
        critic.engine.infer_max_token_len_per_gpu = critic.ppo_max_token_len_per_gpu
        critic.engine.use_dynamic_bsz = True
        worker = TrainingWorker(
            TrainingWorkerConfig(
                model_type="value_model",
                model_config=critic.model,
                engine_config=critic.engine,
                optimizer_config=critic.optim,
                checkpoint_config=critic.checkpoint,
            )
        )
        worker.reset()
        worker.set_loss_fn(partial(value_loss, config=critic))
        return worker


def schedule_learning_rate(engine: Any, factor: Callable[[int], float]) -> None:
    """Put a schedule in verl's place, where checkpoints save it too (`transformer_impl.py:497`)."""
    for group in engine.optimizer.param_groups:
        group["lr"] = group["initial_lr"]
    scheduler = torch.optim.lr_scheduler.LambdaLR(engine.optimizer, factor)
    engine.lr_scheduler = scheduler
    engine.checkpoint_manager.lr_scheduler = scheduler


def _value_model(
    local_path: str, torch_dtype: Any, model_config: Any, trust_remote_code: bool
) -> Any:
    """Stand in for `utils/model.py:640`, which demands flash attention."""
    from transformers import AutoModelForTokenClassification

    model: Any = AutoModelForTokenClassification.from_pretrained(
        local_path,
        dtype=torch_dtype,
        config=model_config,
        attn_implementation="sdpa",
        trust_remote_code=trust_remote_code,
    )
    # Values begin at 0, whatever the scale at which the model draws new weights.
    for weight in model.score.parameters():
        torch.nn.init.zeros_(weight)
    return model


def _replace_slow_parts() -> None:
    from verl.utils import torch_functional
    from verl.workers.engine.fsdp import transformer_impl

    from lightningrl_verl.worker import language_engine

    language_engine.register()

    torch_functional.logprobs_from_logits_v2 = token_log_probs
    transformer_impl.prepare_micro_batches = _micro_batches  # pyright: ignore[reportPrivateImportUsage] # the name it calls


def _micro_batches(data: Any, **options: Any) -> tuple[list[TensorDict], Any]:
    """Stands in for `workers/engine/utils.py:92`: rows that share tokens, or of like length, share a pass."""
    from verl.utils import tensordict_utils
    from verl.workers.engine import utils

    from lightningrl_verl.worker.language_engine import PACKS

    if tensordict_utils.get_non_tensor_data(data, "use_remove_padding", default=False):
        return utils.prepare_micro_batches(data, **options)
    budget = data["max_token_len_per_gpu"]
    cut: Callable[..., list[list[int]]]
    if tensordict_utils.get_non_tensor_data(data, PACKS, default=False):
        rows = [row.numpy() for row in data["input_ids"].unbind()]
        cut = partial(cut_by_shared_tokens, rows, budget)
    else:
        lengths: list[int] = data["input_ids"].offsets().diff().tolist()
        cut = partial(cut_by_padded_tokens, lengths, budget)
    groups = cut()
    if options.get("same_micro_num_in_dp"):
        groups = cut(at_least=largest_of_all_ranks(len(groups), options["dp_group"]))
    return [tensordict_utils.index_select_tensor_dict(data, group) for group in groups], groups
