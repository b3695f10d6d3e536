"""Training rows in verl's terms: jagged prompts and responses in one TensorDict.

A row's prompt is what stands before its first trained token, its response everything after; tool
results inside the response carry mask 0. Invariant: a token is trained exactly where the row's mask
is True, and what comes back is aligned with the row's own `token_ids`.
"""

from __future__ import annotations

# Shapes in annotations are no forward references.
# ruff: noqa: F722
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from lightningrl.errors import RunError

if TYPE_CHECKING:
    from tensordict import TensorDict

FloatArray = NDArray[np.float32]

_FILLER_TOKENS = 2
"""A prompt of one and a response of one, which carries no mask."""


class TrainingRow(Protocol):
    """What a training sequence of T tokens must have; `lightningrl.experience.trajectory.Row` has it."""

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


def token_budget(tokens: int, rows: Sequence[TrainingRow]) -> int:
    """Most tokens of a pass: `tokens`, or as many as the longest row has."""
    return max(tokens, *(len(row.token_ids) for row in rows))


def to_batch(
    rows: Sequence[TrainingRow | None],
    fields: Mapping[str, Sequence[FloatArray | None]] = MappingProxyType({}),
) -> TensorDict:
    """Rows as verl's TensorDict without padding tokens.

    Args:
        rows: at least one. `None` stands for a filler: two tokens, no mask, no part in loss or gradient.
        fields: verl's name -> per row (T,), aligned with its `token_ids`; `None` for a filler.

    Raises:
        RunError: a row can't be trained (see `prompt_length`), or there are none.
    """
    # It brings torch's compiler, a second of imports; who names these types alone needs neither.
    from tensordict import TensorDict

    if not rows:
        raise RunError("there are no rows to train on; skip the update of this iteration")
    starts = [1 if row is None else prompt_length(row) for row in rows]
    tensors = _token_fields(rows, starts)
    for name, arrays in fields.items():
        tensors[name] = _responses(arrays, starts, np.float32)
    return TensorDict(tensors, batch_size=[len(rows)])


def whole_mask(rows: Sequence[TrainingRow | None]) -> Tensor:
    """The rows' masks over prompts and responses alike, jagged, as verl's `sft_loss` reads them."""
    return _jagged(
        [
            np.zeros(_FILLER_TOKENS, np.int64) if row is None else row.mask.astype(np.int64)
            for row in rows
        ]
    )


def _token_fields(rows: Sequence[TrainingRow | None], starts: Sequence[int]) -> dict[str, Tensor]:
    filler = np.zeros(_FILLER_TOKENS, np.int64)
    tokens = [filler if row is None else row.token_ids.astype(np.int64) for row in rows]
    mask = _responses([None if row is None else row.mask for row in rows], starts, np.int64)
    return {
        "input_ids": _jagged(tokens),
        "position_ids": _jagged([np.arange(len(ids)) for ids in tokens]),
        "prompts": _jagged([ids[:start] for ids, start in zip(tokens, starts, strict=True)]),
        "responses": _jagged([ids[start:] for ids, start in zip(tokens, starts, strict=True)]),
        "response_mask": mask,
        "loss_mask": mask.clone(),
    }


def _responses(
    arrays: Sequence[NDArray[Any] | None], starts: Sequence[int], dtype: type[np.generic]
) -> Float[Tensor, "rows response"]:
    """What stands at each row's response, jagged; 0 for a filler's one token."""
    return _jagged(
        [
            np.zeros(1, dtype) if array is None else array[start:].astype(dtype)
            for array, start in zip(arrays, starts, strict=True)
        ]
    )


def _jagged(arrays: Sequence[NDArray[Any]]) -> Tensor:
    offsets = np.concatenate([[0], np.cumsum([len(array) for array in arrays])])
    return torch.nested.nested_tensor_from_jagged(
        torch.from_numpy(np.concatenate(arrays)), torch.from_numpy(offsets)
    )


def align_next(rows: Sequence[TrainingRow | None], next_token: FloatArray) -> list[FloatArray]:
    """What verl says of the token after each (a log-prob, a value), aligned with that token.

    Args:
        rows: the rows that were scored, in order; `None` for a filler.
        next_token: of each token's successor, rows end to end; the last number of a row belongs to no
            token of it.

    Returns:
        Per row (T,) float32, 0 where not masked; for a filler two zeros.
    """
    aligned: list[FloatArray] = []
    start = 0
    for row in rows:
        mask = np.zeros(_FILLER_TOKENS, np.bool_) if row is None else row.mask
        end = start + len(mask)
        shifted = np.concatenate([[np.float32(0)], next_token[start : end - 1]])
        aligned.append(np.where(mask, shifted, np.float32(0)).astype(np.float32))
        start = end
    return aligned
