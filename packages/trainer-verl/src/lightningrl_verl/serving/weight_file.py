"""Weights as files, by which engines in other processes take them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import save_file
from torch import Tensor

SUFFIX = ".safetensors"
"""Of a file of weights."""

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def write_weights(
    weights: Sequence[tuple[str, Tensor]], path: Path, *, dtype: Literal["fp32", "bf16"] = "fp32"
) -> None:
    """Write whole weights by their Hugging Face names, rounded to `dtype`."""
    # The format takes no shared storage, which tied weights have.
    separate = {
        name: tensor.to("cpu", _DTYPES[dtype]).contiguous().clone() for name, tensor in weights
    }
    save_file(separate, path, metadata={"format": "pt"})
