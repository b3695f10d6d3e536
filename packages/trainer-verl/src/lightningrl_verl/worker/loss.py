"""The loss of an update: verl's policy loss as a token sum, and what is measured beside it.

Invariant: the gradient of the policy's term is the sum over trained tokens of advantage times weight times
verl's own objective, whatever the number of rows and micro-batches that it was cut into.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lightningrl.errors import RunError

if TYPE_CHECKING:
    from tensordict import TensorDict

_REPORTED = (
    "loss",
    "grad_norm",
    "actor/pg_clipfrac",
    "actor/ppo_kl",
    "entropy",
    "kl",
    "ratio_max",
)


ROW = "row"
"""Field of a batch with the number of each row; where it is there, its log-probs are kept."""


def keeping_loss(
    kept: dict[int, Tensor],
    config: Any,
    model_output: dict[str, Tensor],
    data: TensorDict,
    dp_group: Any = None,
) -> tuple[Tensor, dict[str, Any]]:
    """`token_sum_loss`; the log-probs of rows with a `ROW` are put into `kept`, of each token's successor."""
    if ROW in data:
        log_probs: Any = model_output["log_probs"]
        numbers: list[int] = data[ROW].tolist()
        kept |= dict(zip(numbers, log_probs.detach().unbind(), strict=True))
    return token_sum_loss(config, model_output, data, dp_group)


def token_sum_loss(
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
    # verl means these over passes, so that short passes, and those of fillers alone, weigh too much.
    # Their sum over a rank's passes is meant over ranks afterwards, as verl's own sums are.
    info = config.global_batch_info
    share = float(mask.sum()) / info["batch_num_tokens"] * info["dp_size"]
    for name in ("actor/pg_clipfrac", "actor/ppo_kl"):
        if name in metrics:
            metrics[name] = Metric(AggregationType.SUM, metrics[name].aggregate() * share)
    current: Any = padding.no_padding_2_padding(model_output["log_probs"], data)
    moved = (current.detach() - fields["old_log_probs"].to_padded_tensor(0.0)).abs() * mask
    # Kept finite, for metrics are JSON.
    ratio = moved.max().exp().clamp(max=torch.finfo(moved.dtype).max)
    metrics["ratio_max"] = Metric(AggregationType.MAX, ratio)
    if "entropy" in model_output:
        entropy = mean(padding.no_padding_2_padding(model_output["entropy"], data))
        loss = loss - config.entropy_coeff * entropy
        metrics["entropy"] = Metric(AggregationType.SUM, entropy)
    if "ref_log_prob" in data:
        reference = fields["ref_log_prob"].to_padded_tensor(0.0)
        kl = mean(core_algos.kl_penalty(current, reference, config.kl_loss_type))
        loss = loss + config.kl_loss_coef * kl
        metrics["kl"] = Metric(AggregationType.SUM, kl)
    return loss, metrics


def answer_loss(
    config: Any, model_output: dict[str, Tensor], data: TensorDict, dp_group: Any = None
) -> tuple[Tensor, dict[str, Any]]:
    """Minus the mean log-prob of the trained tokens of a mini-batch, over all ranks: verl's `sft_loss`."""
    from verl.workers.utils import losses

    return losses.sft_loss(config, model_output, data, dp_group)


def update_metrics(measured: Any, learning_rate: float) -> dict[str, float]:
    """What one update reports, from verl's lists of one value per mini-batch.

    Raises:
        RunError: loss or gradient norm is no finite number.
    """
    from verl.utils.metric import reduce_metrics

    reduced: dict[str, float] = {k: float(v) for k, v in reduce_metrics(measured).items()}
    metrics = {name.removeprefix("actor/"): reduced[name] for name in _REPORTED if name in reduced}
    metrics["lr"] = learning_rate
    if not torch.isfinite(torch.tensor([metrics["loss"], metrics["grad_norm"]])).all():
        raise RunError(
            f"the update diverged (loss {metrics['loss']}, gradient norm {metrics['grad_norm']}); "
            "resume from the last checkpoint with a lower learning rate or gradient clip"
        )
    return metrics
