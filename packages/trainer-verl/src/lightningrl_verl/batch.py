"""Training rows in verl's terms: jagged prompts and responses in one TensorDict.

A row's prompt is what stands before its first trained token, its response everything after; tool
results inside the response carry mask 0. Invariant: a token is trained exactly where the row's mask
is True, and what comes back is aligned with the row's own `token_ids`.
"""

from __future__ import annotations

# Shapes in annotations are no forward references.
# ruff: noqa: F722
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from tensordict import TensorDict
from torch import Tensor

from lightningrl.errors import RunError

FloatArray = NDArray[np.float32]


class TrainingRow(Protocol):
    """What a training sequence of T tokens must have; `lightningrl.trajectory.Row` has it."""

    @property
    def token_ids(self) -> NDArray[np.int32]:
        """(T,) the whole sequence."""
        ...

    @property
    def mask(self) -> NDArray[np.bool_]:
        """(T,) True on tokens that the engine sampled: these are trained."""
        ...

    @property
    def advantages(self) -> FloatArray:
        """(T,) advantage times weight, as it enters the token sum; 0 where not masked."""
        ...

    @property
    def rollout_id(self) -> str:
        """The rollout it came from; only named in errors."""
        ...


def prompt_length(row: TrainingRow) -> int:
    """Tokens before the first trained one.

    Raises:
        RunError: no token is trained, or the very first one is, which no model can predict.
    """
    trained = np.flatnonzero(row.mask)
    if trained.size == 0:
        raise RunError(
            f"a row of rollout {row.rollout_id!r} has no trained token; leave it out of the update"
        )
    if trained[0] == 0:
        raise RunError(
            f"a row of rollout {row.rollout_id!r} trains its first token, which nothing precedes; "
            "every row needs a prompt of at least one token"
        )
    return int(trained[0])


def to_batch(
    rows: Sequence[TrainingRow],
    *,
    old_log_probs: Sequence[FloatArray] | None = None,
    advantage_scale: float = 1.0,
    multiple_of: int = 1,
) -> TensorDict:
    """Rows as verl's TensorDict without padding tokens.

    Args:
        rows: at least one.
        old_log_probs: per row (T,), of the policy that the ratio compares with. None leaves out
            what only an update needs (`old_log_probs`, `advantages`).
        advantage_scale: multiplies every advantage.
        multiple_of: fully masked rows are appended up to a multiple of this number of rows; they
            change neither loss nor gradient.

    Raises:
        RunError: a row can't be trained (see `prompt_length`), or there are none.
    """
    if not rows:
        raise RunError("there are no rows to train on; skip the update of this iteration")
    prompts = [prompt_length(row) for row in rows]
    filler = -len(rows) % multiple_of
    fields = _token_fields(rows, prompts, filler)
    if old_log_probs is not None:
        scaled = [row.advantages * np.float32(advantage_scale) for row in rows]
        fields["old_log_probs"] = _responses(old_log_probs, prompts, filler)
        fields["advantages"] = _responses(scaled, prompts, filler)
    return TensorDict(fields, batch_size=[len(rows) + filler])


def _token_fields(
    rows: Sequence[TrainingRow], prompts: Sequence[int], filler: int
) -> dict[str, Tensor]:
    tokens = [row.token_ids.astype(np.int64) for row in rows] + [np.zeros(2, np.int64)] * filler
    starts = [*prompts, *([1] * filler)]
    mask = _responses([row.mask.astype(np.int64) for row in rows], prompts, filler)
    return {
        "input_ids": _jagged(tokens),
        "position_ids": _jagged([np.arange(len(ids)) for ids in tokens]),
        "prompts": _jagged([ids[:start] for ids, start in zip(tokens, starts, strict=True)]),
        "responses": _jagged([ids[start:] for ids, start in zip(tokens, starts, strict=True)]),
        "response_mask": mask,
        "loss_mask": mask.clone(),
    }


def _responses(
    arrays: Sequence[NDArray[Any]], prompts: Sequence[int], filler: int
) -> Float[Tensor, "rows response"]:
    parts = [array[start:] for array, start in zip(arrays, prompts, strict=True)]
    return _jagged([*parts, *([np.zeros(1, arrays[0].dtype)] * filler)])


def _jagged(arrays: Sequence[NDArray[Any]]) -> Tensor:
    offsets = np.concatenate([[0], np.cumsum([len(array) for array in arrays])])
    return torch.nested.nested_tensor_from_jagged(
        torch.from_numpy(np.concatenate(arrays)), torch.from_numpy(offsets)
    )


def align_log_probs(
    rows: Sequence[TrainingRow], next_token: Float[Tensor, " tokens"]
) -> list[FloatArray]:
    """Log-probs from verl, aligned with each row's tokens.

    Args:
        rows: the rows that were scored, in order.
        next_token: log-prob of each token's successor, rows end to end; the last value of a row
            belongs to no token of it. Values of appended rows may follow.

    Returns:
        Per row (T,) float32, 0 where not masked.
    """
    values: FloatArray = next_token.float().numpy(force=True)
    aligned: list[FloatArray] = []
    start = 0
    for row in rows:
        end = start + len(row.token_ids)
        shifted = np.concatenate([[np.float32(0)], values[start : end - 1]])
        aligned.append(np.where(row.mask, shifted, np.float32(0)).astype(np.float32))
        start = end
    return aligned
