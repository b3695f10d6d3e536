"""Weights as files, by which engines in other processes take them."""

from __future__ import annotations

import os
import shutil
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


def link_or_copy(source: str | Path, target: str | Path) -> None:
    """Copy without a second set of bytes, where the file system can."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
