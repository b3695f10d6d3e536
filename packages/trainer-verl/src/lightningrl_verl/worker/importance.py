"""Importance weights of rows that the trained weights did not sample: verl's truncated ones.

A weight is the probability of a token (or of a row's tokens together) under the weights before the update,
over that under which it was sampled. Invariant: weights multiply losses and never credit; where engine and
trainer agree and no call is stale they are all 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from lightningrl.experience.trajectory import Row
from lightningrl.recipe import Algorithm
from lightningrl_verl.worker.batch import FloatArray


def importance_weights(
    rows: Sequence[Row], current: Sequence[FloatArray], algorithm: Algorithm
) -> tuple[list[FloatArray], Mapping[str, float]]:
    """Weights by verl's `rollout_corr_helper.py:522`, and how they are spread.

    Args:
        rows: at least one; their `logprobs` are the engine's.
        current: per row (T,), log-probs under the weights before the update.
        algorithm: `importance` is `token` or `sequence`.

    Returns:
        Per row (T,), 0 where not masked; and `importance_mean`, `importance_max` (before they are cut),
        `importance_cut` (the share of tokens whose weight was cut or left out) and
        `importance_effective` (the effective sample size, as a share of the tokens).
    """
    from verl.trainer.ppo.rollout_corr_helper import compute_rollout_correction_weights

    assert algorithm.importance is not None, "it is settled when a run starts"
    longest = max(len(row.token_ids) for row in rows)
    mask = torch.zeros(len(rows), longest)
    gap = torch.zeros(len(rows), longest)
    for i, (row, now) in enumerate(zip(rows, current, strict=True)):
        mask[i, : len(row.mask)] = torch.from_numpy(row.mask.astype(np.float32))
        gap[i, : len(row.mask)] = torch.from_numpy(np.where(row.mask, now - row.logprobs, 0))
    weights, _ = compute_rollout_correction_weights(
        gap, mask, rollout_is=algorithm.importance, rollout_is_threshold=_bounds(algorithm)
    )
    raw = gap.sum(-1, keepdim=True).expand_as(gap) if algorithm.importance == "sequence" else gap
    on = mask.bool()
    # Kept finite, for metrics are JSON.
    before = raw[on].double().exp().clamp(max=torch.finfo(torch.float64).max)
    kept = weights[on].double()
    metrics = {
        "importance_mean": float(kept.mean()),
        "importance_max": float(before.max()),
        "importance_cut": float((kept < before * (1 - 1e-6)).double().mean()),
        "importance_effective": float(kept.sum() ** 2 / (len(kept) * (kept**2).sum()))
        if kept.any()
        else 0.0,
    }
    return [weights[i, : len(row.mask)].numpy() for i, row in enumerate(rows)], metrics


def _bounds(algorithm: Algorithm) -> Any:
    if algorithm.importance_min is None:
        return algorithm.importance_max
    return f"{algorithm.importance_min}_{algorithm.importance_max}"
