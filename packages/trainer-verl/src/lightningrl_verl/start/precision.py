"""In which precision a run computes, where its recipe leaves that to the machine.

Invariant: nothing that is kept depends on it: weights, moments and checkpoints are fp32, so a run may go on on
another machine in another precision.
"""

from __future__ import annotations

import time
from typing import Literal

import torch
from msgspec import structs

from lightningrl.recipe import LoadedRecipe
from lightningrl_verl.start.combinations import default_importance

_WORTH = 1.3
"""How much faster bf16 must be: what it rounds off is not worth less."""

_SHAPE = (256, 576, 1536)
"""Of the product that is timed: rows, inputs and outputs of a small model's layer."""

_ROUNDS = 20
"""A fifth of a second on two quiet cores, half a second beside a training."""


def settle(loaded: LoadedRecipe) -> tuple[LoadedRecipe, str | None]:
    """The recipe with `trainer.dtype` and `algorithm.importance` as they are used.

    Returns:
        And what the user should know of it; `None` where the recipe says everything.
    """
    recipe = loaded.recipe
    dtype, said = recipe.trainer.dtype, None
    if dtype == "auto":
        dtype, why = faster(recipe.trainer.device)
        said = f"trainer.dtype: auto is {dtype}: {why}"
    algorithm = recipe.algorithm
    if algorithm is not None:
        importance = algorithm.importance or default_importance(algorithm, dtype)
        algorithm = structs.replace(algorithm, importance=importance)
    trainer = structs.replace(recipe.trainer, dtype=dtype)
    settled = structs.replace(recipe, trainer=trainer, algorithm=algorithm)
    return structs.replace(loaded, recipe=settled), said


def faster(device: Literal["cpu", "cuda"]) -> tuple[Literal["fp32", "bf16"], str]:
    """The precision that the device multiplies faster in, and why."""
    if device == "cuda":
        supported = torch.cuda.is_available() and torch.cuda.is_bf16_supported()
        return ("bf16", "the GPU has it") if supported else ("fp32", "the GPU has no bf16")
    times = _least_seconds(torch.float32, torch.bfloat16)
    ratio = times[torch.float32] / times[torch.bfloat16]
    why = f"this CPU multiplies {ratio:.1f} times as fast in bf16 as in fp32"
    return ("bf16", why) if ratio >= _WORTH else ("fp32", why)


def _least_seconds(*dtypes: torch.dtype) -> dict[torch.dtype, float]:
    """The least time of a product in each.

    They take turns, for longer than another process keeps a core at a time: who measures them one after the other, each
    for a few milliseconds, measures what else the machine does.
    """
    rows, inputs, outputs = _SHAPE
    factors = {
        one: (torch.ones(rows, inputs, dtype=one), torch.ones(outputs, inputs, dtype=one))
        for one in dtypes
    }
    least = dict.fromkeys(dtypes, float("inf"))
    for _ in range(_ROUNDS):
        for one, (left, right) in factors.items():
            started = time.perf_counter()
            torch.nn.functional.linear(left, right)
            least[one] = min(least[one], time.perf_counter() - started)
    return least
