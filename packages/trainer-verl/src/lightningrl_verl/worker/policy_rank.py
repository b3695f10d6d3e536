"""One rank's part of a policy: verl's own FSDP2 worker, with its shard of weights and optimiser.

Nothing here knows where the process runs or who drives it: alone it is the whole policy, in a group of
processes one shard of it. All methods are collective: every rank calls them in the same order.
"""

from __future__ import annotations

import asyncio
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lightningrl.errors import RunError
from lightningrl_verl.worker.backend_config import (
    SUPERVISED,
    BackendConfig,
    compose_verl_config,
)
from lightningrl_verl.worker.batch import FloatArray
from lightningrl_verl.worker.loss import ROW, answer_loss, keeping_loss
from lightningrl_verl.worker.rank_state import (
    load_state,
    restore_weights,
    restore_whole,
    save_moments,
    save_state,
)
from lightningrl_verl.worker.schedule import learning_rate_factor
from lightningrl_verl.worker.whole_weights import export_weights, send_merged, weights_of
from lightningrl_verl.worker.workers import policy_worker, schedule_learning_rate, select_device

if TYPE_CHECKING:
    from tensordict import TensorDict

_EXPORT = "huggingface"
"""Where verl's checkpoint keeps the weights in Hugging Face form."""

_TOKENS = ("prompts", "responses", "input_ids", "position_ids", "response_mask", "loss_mask")
_SETTINGS = ("temperature", "max_token_len_per_gpu", "compute_loss")


class PolicyRank:
    """A policy and its optimiser on one rank. Several may live in one process if they share a device."""

    def __init__(self, config: BackendConfig) -> None:
        """Load the policy (and with a KL penalty a frozen copy of it).

        Raises:
            ConfigError: an override is wrong, the device is absent, or verl already runs on another.
        """
        self._config = config
        self._device = config.device
        composed = compose_verl_config(config)
        select_device(config.device)
        torch.manual_seed(config.seed)
        settings = composed.actor_rollout_ref
        colocated = config.rollout is not None and config.rollout.colocated
        role = "actor_rollout" if colocated else "actor"
        self._actor = policy_worker(settings, role, config.device, config.train_last)
        penalised = config.optimiser.kl_coeff > 0
        self._reference = policy_worker(settings, "ref", config.device) if penalised else None
        of_verl = self._actor.loss_fn.keywords["config"]
        self._kept: dict[int, Tensor] = {}
        self._actor.set_loss_fn(
            partial(answer_loss, of_verl)
            if config.loss == SUPERVISED
            else partial(keeping_loss, self._kept, of_verl)
        )
        if config.rollout is not None:
            send_merged(self._engine)
        optimiser = config.optimiser
        schedule_learning_rate(
            self._engine,
            partial(
                learning_rate_factor,
                schedule=optimiser.schedule,
                warmup=optimiser.warmup,
                total=config.total_iterations,
                min_ratio=optimiser.min_lr_ratio,
            ),
        )

    def vocabulary(self) -> int:
        """Token ids run from 0 to one less.

        A model may have rows for more than its tokenizer has tokens, which engines refuse or never draw.
        """
        model = self._engine.model_config
        return min(int(model.hf_config.get_text_config().vocab_size), len(model.tokenizer))

    def log_probs(self, batch: TensorDict) -> FloatArray:
        """Of each token's successor, rows end to end."""
        scored: Any = self._actor.compute_log_prob(batch)
        return scored["log_probs"].values().float().numpy(force=True)

    def has_dropout(self) -> bool:
        """Whether a forward pass of an update differs from one that only scores."""
        return any(
            getattr(one, "attention_dropout", 0) or (isinstance(one, torch.nn.Dropout) and one.p)
            for one in self._engine.module.modules()
        )

    def update_and_score(self, batch: TensorDict) -> tuple[dict[str, Any], float, FloatArray]:
        """As `update` of one mini-batch in one epoch, and as `log_probs` of before it."""
        batch[ROW] = torch.arange(len(batch))
        try:
            metrics, learning_rate = self.update(batch)
            scored = torch.cat([self._kept[row] for row in range(len(batch))])
        finally:
            self._kept.clear()
        return metrics, learning_rate, scored.float().numpy(force=True)

    def update(self, batch: TensorDict) -> tuple[dict[str, Any], float]:
        """Train on this rank's rows; return verl's metrics of all ranks, and the learning rate used."""
        if self._reference is not None:
            batch["ref_log_prob"] = self._reference_log_probs(batch)
        learning_rate = float(self._engine.optimizer.param_groups[0]["lr"])
        measured: Any = self._actor.update_actor(batch)
        return dict(measured["metrics"]), learning_rate

    def weights(self) -> list[tuple[str, Tensor]]:
        """Whole, fp32, under their Hugging Face names, adapters merged in.

        On a single rank they may share storage with the live weights.
        """
        return weights_of(self._engine)

    def send_weights(self, version: int, mode: str) -> None:
        """Send the weights to the engines that verl manages, by its own means; collective.

        Args:
            version: of the weights.
            mode: "naive" to an engine that shares this rank's device and sleeps; it is awake afterwards. Else
                the checkpoint engine by which they reach engines elsewhere.
        """
        asyncio.run(self._actor.update_weights(global_steps=version, mode=mode))

    def checkpoint_engine(self, method: str, **arguments: Any) -> Any:
        """Call a method of verl's checkpoint engine, which sends weights to engines elsewhere."""
        return self._actor.execute_checkpoint_engine(method, **arguments)

    def free_cache(self) -> None:
        """Give the memory that torch keeps for later back to the device."""
        if self._device == "cuda":
            torch.cuda.empty_cache()

    def save(self, directory: Path, former: Path | None) -> None:
        """Write this rank's shard, and together with the others the weights in Hugging Face form.

        Args:
            directory: to write.
            former: of the checkpoint before, for weights that are not trained. `None`: there is none.
        """
        if self._config.weights_in_export:
            save_moments(self._engine, directory)
        else:
            save_state(self._actor, directory)
        export_weights(
            self._engine,
            directory / _EXPORT,
            model=Path(self._config.model_path),
            former=former and former / _EXPORT,
        )

    def load(self, directory: Path) -> bool:
        """Restore this rank's shard of weights and optimiser, the learning rate and the random states.

        Returns:
            False if the checkpoint is of another number of ranks: then the optimiser's moments are new
            ones, while the weights come whole from the export and the learning rate goes on.

        Raises:
            RunError: `directory` holds no checkpoint, or adapters of another number of ranks.
        """
        if load_state(self._actor, directory):
            if self._config.weights_in_export:
                restore_weights(self._engine, directory / _EXPORT)
            return True
        if self._engine.model_config.lora_rank > 0:
            raise RunError(
                f"the checkpoint {str(directory)!r} has adapters that were trained on another number of"
                " ranks, and its export has them merged; set 'trainer.ranks' back"
            )
        restore_whole(self._engine, directory, directory / _EXPORT)
        return False

    def close(self) -> None:
        """Let go of the weights; the rank can't be used afterwards."""
        del self._actor, self._reference
        self.free_cache()

    @property
    def _engine(self) -> Any:
        training_worker: Any = self._actor.actor
        return training_worker.engine

    def _reference_log_probs(self, batch: TensorDict) -> Tensor:
        from verl.utils import tensordict_utils
        from verl.workers.utils.padding import response_from_nested

        assert self._reference is not None
        tokens = batch.select(*_TOKENS, *_SETTINGS)
        tensordict_utils.assign_non_tensor(tokens, calculate_entropy=False)
        scored: Any = self._reference.compute_ref_log_prob(tokens)
        return response_from_nested(scored["log_probs"], batch["response_mask"])
