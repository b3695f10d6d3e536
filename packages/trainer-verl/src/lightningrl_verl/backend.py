"""The seam to verl: one policy, trained by verl's own FSDP2 worker in this process, without Ray.

All imports of verl stand here (and in `cpu/`), inside functions, since the platform must be chosen
before the first of them runs. Invariant: the loss is exactly the sum over trained tokens of
advantage times weight times the clipped ratio, whatever the number of rows, micro-batches or
processes that it was cut into.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lightningrl.errors import ConfigError, RunError
from lightningrl_verl.backend_config import BackendConfig, compose_verl_config
from lightningrl_verl.batch import FloatArray, TrainingRow, align_log_probs, to_batch
from lightningrl_verl.micro_batches import cut_by_padded_tokens
from lightningrl_verl.process_group import single_process_environment, start_process_group
from lightningrl_verl.quiet import quiet
from lightningrl_verl.schedule import learning_rate_factor
from lightningrl_verl.token_log_probs import token_log_probs

if TYPE_CHECKING:
    from omegaconf import DictConfig
    from tensordict import TensorDict
    from verl.workers.engine_workers import ActorRolloutRefWorker

_WEIGHTS = "huggingface"
"""Where verl's checkpoint keeps the weights in Hugging Face form."""


class VerlBackend:
    """A policy and its optimizer. Several may live in one process if they share a device.

    Not safe for concurrent calls: the trainer owns it.
    """

    def __init__(self, config: BackendConfig) -> None:
        """Load the policy (and with `use_kl_loss` a frozen copy of it).

        Raises:
            ConfigError: an override is wrong, the device is absent, or verl already runs on another.
        """
        self.config = config
        composed = compose_verl_config(config)
        _select_device(config.device)
        torch.manual_seed(config.seed)
        with quiet(), single_process_environment():
            start_process_group(config.device)
            self._actor = _worker(composed.actor_rollout_ref, "actor")
            self._reference = (
                _worker(composed.actor_rollout_ref, "ref") if config.use_kl_loss else None
            )
        self._verl = composed.actor_rollout_ref.actor
        self._actor.set_loss_fn(
            partial(_token_sum_loss, config=self._actor.loss_fn.keywords["config"])
        )
        self._schedule_learning_rate()

    @property
    def tokenizer(self) -> Any:
        """The policy's tokenizer, as transformers loaded it."""
        return self._engine.model_config.tokenizer

    @property
    def vocabulary(self) -> int:
        """Token ids run from 0 to one less."""
        return int(self._engine.model_config.hf_config.get_text_config().vocab_size)

    def log_probs(
        self, rows: Sequence[TrainingRow], temperature: float | None = None
    ) -> list[FloatArray]:
        """Log-probs of the rows' trained tokens under the current weights.

        Args:
            rows: at least one.
            temperature: of the distribution; None for the one rollouts are sampled at.

        Returns:
            Per row (T,) float32 aligned with `token_ids`, 0 where not masked.

        Raises:
            RunError: there are no rows, or one can't be trained.
        """
        batch = to_batch(rows)
        self._annotate(batch, rows, temperature)
        scored: Any = self._actor.compute_log_prob(batch)
        return align_log_probs(rows, scored["log_probs"].values())

    def update(
        self, rows: Sequence[TrainingRow], old_log_probs: Sequence[FloatArray]
    ) -> dict[str, float]:
        """Train on rows, once per `ppo_epochs` and mini-batch, then advance the learning rate.

        Args:
            rows: their `advantages` have the weights multiplied in. They may be any number; with
                mini-batches each is scaled so that the size of a gradient does not depend on how
                many there are.
            old_log_probs: per row (T,), what the ratio compares with: the engine's own log-probs
                when the rows are on-policy, else `log_probs(rows)` of before the update.

        Returns:
            `loss`, `grad_norm` (before clipping), `lr` (as used), `pg_clipfrac`, `ppo_kl` (means
            over micro-batches of token means) and, where computed, `entropy` and `kl` (token means).

        Raises:
            RunError: there are no rows, one can't be trained, or the gradient is not finite.
        """
        from verl.utils import tensordict_utils

        size = -(-len(rows) // self.config.mini_batches)
        count = max(1, -(-len(rows) // max(1, size)))
        batch = to_batch(
            rows, old_log_probs=old_log_probs, advantage_scale=count, multiple_of=max(1, size)
        )
        if self._reference is not None:
            batch["ref_log_prob"] = self._reference_log_probs(batch, rows)
        self._annotate(batch, rows, None)
        tensordict_utils.assign_non_tensor(
            batch,
            mini_batch_size=size,
            global_batch_size=size,
            epochs=self.config.ppo_epochs,
        )
        learning_rate = float(self._engine.optimizer.param_groups[0]["lr"])
        measured = self._actor.update_actor(batch)["metrics"]
        return _metrics(measured, learning_rate)

    def named_parameters(self) -> Iterator[tuple[str, Tensor]]:
        """The current weights under their Hugging Face names: whole, fp32, detached.

        They may share storage with the live weights: copy them before the next update.
        """
        parameters, _ = self._engine.get_per_tensor_param()
        for name, tensor in parameters:
            yield name, tensor.detach()

    def save(self, directory: Path) -> None:
        """Write all that a resume needs, and the weights in Hugging Face form, below `directory`.

        verl writes in place; make the folder atomic by renaming it.
        """
        with quiet():
            self._actor.save_checkpoint(str(directory))
        _declare_fp32(directory / _WEIGHTS / "config.json")

    def load(self, directory: Path) -> None:
        """Restore weights, optimizer, learning rate and the process' random states.

        Raises:
            RunError: `directory` holds no checkpoint of one process.
        """
        expected = directory / "model_world_size_1_rank_0.pt"
        if not expected.is_file():
            raise RunError(f"no checkpoint in {str(directory)!r}: {expected.name} is missing")
        with quiet():
            self._actor.load_checkpoint(str(directory))

    def export_hf(self, directory: Path) -> None:
        """Write weights, configuration and tokenizer for `from_pretrained`; replaces `directory`."""
        scratch = directory.with_name(f".{directory.name}.partial")
        shutil.rmtree(scratch, ignore_errors=True)
        manager = self._engine.checkpoint_manager
        contents = manager.checkpoint_save_contents
        manager.checkpoint_save_contents = ["hf_model"]
        try:
            self.save(scratch)
        finally:
            manager.checkpoint_save_contents = contents
        shutil.rmtree(directory, ignore_errors=True)
        (scratch / _WEIGHTS).rename(directory)
        shutil.rmtree(scratch)

    def close(self) -> None:
        """Let go of the weights; the backend can't be used afterwards."""
        del self._actor, self._reference
        if self.config.device == "cuda":
            torch.cuda.empty_cache()

    @property
    def _engine(self) -> Any:
        training_worker: Any = self._actor.actor
        return training_worker.engine

    def _schedule_learning_rate(self) -> None:
        """Put our schedule in verl's place, where checkpoints save it too (`transformer_impl.py:497`)."""
        factor = partial(
            learning_rate_factor,
            schedule=self.config.lr_schedule,
            warmup=self.config.warmup,
            total=self.config.total_iterations,
            min_ratio=self.config.min_lr_ratio,
        )
        engine = self._engine
        for group in engine.optimizer.param_groups:
            group["lr"] = group["initial_lr"]
        scheduler = torch.optim.lr_scheduler.LambdaLR(engine.optimizer, factor)
        engine.lr_scheduler = scheduler
        engine.checkpoint_manager.lr_scheduler = scheduler

    def _annotate(
        self, batch: TensorDict, rows: Sequence[TrainingRow], temperature: float | None
    ) -> None:
        from verl.utils import tensordict_utils

        longest = max(len(row.token_ids) for row in rows)
        budget = max(int(self._verl.ppo_max_token_len_per_gpu), longest)
        entropy = bool(self._verl.calculate_entropy) or float(self._verl.entropy_coeff) != 0.0
        tensordict_utils.assign_non_tensor(
            batch,
            temperature=self.config.temperature if temperature is None else temperature,
            max_token_len_per_gpu=budget,
            calculate_entropy=entropy and "old_log_probs" in batch,
            compute_loss=False,
        )

    def _reference_log_probs(self, batch: TensorDict, rows: Sequence[TrainingRow]) -> Tensor:
        from verl.workers.utils.padding import response_from_nested

        assert self._reference is not None
        tokens = batch.select(
            "prompts", "responses", "input_ids", "position_ids", "response_mask", "loss_mask"
        )
        self._annotate(tokens, rows, None)
        scored: Any = self._reference.compute_ref_log_prob(tokens)
        return response_from_nested(scored["log_probs"], batch["response_mask"])


def _declare_fp32(path: Path) -> None:
    """Say what the weights are: verl writes them in fp32 beside a configuration that says bf16.

    (`utils/checkpoint/fsdp_checkpoint_manager.py:447`; transformers would round them on loading.)
    """
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"dtype": "float32"}, indent=2) + "\n")


def _select_device(device: str) -> None:
    with quiet():
        if device == "cpu":
            from lightningrl_verl import cpu

            cpu.activate()
            return
        from verl.plugin.platform import get_platform
    if not torch.cuda.is_available():
        raise ConfigError("device 'cuda' was asked for, but torch sees none; set device: cpu")
    if get_platform().device_name != "cuda":
        raise ConfigError(
            "verl already runs on the CPU in this process; use one device per process"
        )


def _worker(settings: DictConfig, role: str) -> ActorRolloutRefWorker:
    from verl.utils import torch_functional
    from verl.workers.engine.fsdp import transformer_impl
    from verl.workers.engine_workers import ActorRolloutRefWorker

    torch_functional.logprobs_from_logits_v2 = token_log_probs
    transformer_impl.prepare_micro_batches = _micro_batches  # pyright: ignore[reportPrivateImportUsage] # the name it calls
    worker = ActorRolloutRefWorker(settings, role=role)
    worker.init_model()
    return worker


def _micro_batches(data: Any, **options: Any) -> tuple[list[TensorDict], Any]:
    """Stands in for `workers/engine/utils.py:92`: rows of like length share a padded pass."""
    from verl.utils import tensordict_utils
    from verl.workers.engine import utils

    if tensordict_utils.get_non_tensor_data(data, "use_remove_padding", default=False):
        return utils.prepare_micro_batches(data, **options)
    lengths: list[int] = data["input_ids"].offsets().diff().tolist()
    groups = cut_by_padded_tokens(lengths, data["max_token_len_per_gpu"])
    return [tensordict_utils.index_select_tensor_dict(data, group) for group in groups], groups


def _token_sum_loss(
    config: Any, model_output: dict[str, Tensor], data: TensorDict, dp_group: Any = None
) -> tuple[Tensor, dict[str, Any]]:
    """The policy loss of verl as a token sum, plus entropy and KL as token means.

    verl's `ppo_loss` aggregates all three alike (`workers/utils/losses.py:57`); a token sum of the
    entropy would grow with the batch while the weights keep the policy's term at a constant size.
    """
    from verl.trainer.ppo import core_algos
    from verl.utils.metric import AggregationType, Metric
    from verl.workers.utils import losses, padding

    policy = {key: value for key, value in model_output.items() if key != "entropy"}
    loss, metrics = losses.ppo_loss(config, policy, data, dp_group)
    # Jagged tensors and FloatTensor signatures are beyond torch's stubs.
    fields: Any = data
    mask = fields["response_mask"].to_padded_tensor(0).to(torch.bool)
    mean: Any = partial(
        core_algos.agg_loss,
        loss_mask=mask,
        loss_agg_mode="token-mean",
        **config.global_batch_info,
    )
    if "entropy" in model_output:
        entropy = mean(padding.no_padding_2_padding(model_output["entropy"], data))
        loss = loss - config.entropy_coeff * entropy
        metrics["entropy"] = Metric(AggregationType.SUM, entropy)
    if "ref_log_prob" in data:
        current: Any = padding.no_padding_2_padding(model_output["log_probs"], data)
        reference = fields["ref_log_prob"].to_padded_tensor(0.0)
        kl = mean(core_algos.kl_penalty(current, reference, config.kl_loss_type))
        loss = loss + config.kl_loss_coef * kl
        metrics["kl"] = Metric(AggregationType.SUM, kl)
    return loss, metrics


def _metrics(measured: Any, learning_rate: float) -> dict[str, float]:
    from verl.utils.metric import reduce_metrics

    reduced: dict[str, float] = {k: float(v) for k, v in reduce_metrics(dict(measured)).items()}
    names = ("loss", "grad_norm", "actor/pg_clipfrac", "actor/ppo_kl", "entropy", "kl")
    metrics = {name.removeprefix("actor/"): reduced[name] for name in names if name in reduced}
    metrics["lr"] = learning_rate
    if not torch.isfinite(torch.tensor([metrics["loss"], metrics["grad_norm"]])).all():
        raise RunError(
            f"the update diverged (loss {metrics['loss']}, gradient norm {metrics['grad_norm']}); "
            "resume from the last checkpoint with a lower learning rate or gradient clip"
        )
    return metrics
