"""Attention over packed rows: each stretch sees what is before it along its row, and nothing else.

Invariant: no score is computed that a mask would then hide, but for those above the diagonal within a stretch.
"""

from __future__ import annotations

# Shapes in annotations are no forward references.
# ruff: noqa: F722
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers.modeling_utils import AttentionInterface

from lightningrl_verl.engine.cache import refuse_special_attention
from lightningrl_verl.worker.shared_rows import PackedRows

ATTENTION = "lightningrl_packed"
"""The name under which `packed_attention` is known to transformers."""


def packed_attention(
    module: torch.nn.Module,
    query: Float[Tensor, "1 heads tokens head_dim"],
    key: Float[Tensor, "1 kv_heads tokens head_dim"],
    value: Float[Tensor, "1 kv_heads tokens head_dim"],
    attention_mask: None,
    scaling: float | None = None,
    packed: PackedRows | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """SDPA of each stretch.

    Raises:
        NotImplementedError: the layer asks for attention other than full causal one.
    """
    del module, attention_mask
    refuse_special_attention(kwargs)
    if packed is None:
        raise NotImplementedError("a forward pass without packed rows")
    # Key/value heads stand in the batch, so that the query heads of a group share them without a copy. All is
    # split once: the derivative of a slice is as large as what it was cut from.
    queries = query[0].unflatten(0, (key.shape[1], -1))
    split = queries.split([one.stop - one.start for one in packed.stretches], dim=2)
    keys = key[0][:, None].split(packed.pieces, dim=2)
    values = value[0][:, None].split(packed.pieces, dim=2)
    size = (-1, queries.shape[1], -1, -1)
    mixed: list[Tensor] = []
    for own, stretch, seen in zip(split, packed.stretches, packed.seen, strict=True):
        mask = None
        if stretch.context:
            length, before = own.shape[2], sum(stop - start for start, stop in stretch.context)
            mask = torch.ones(length, before + length, dtype=torch.bool, device=own.device)
            mask = mask.tril_(diagonal=before)
        mixed.append(
            scaled_dot_product_attention(
                own,
                torch.cat([keys[piece] for piece in seen], dim=2).expand(size),
                torch.cat([values[piece] for piece in seen], dim=2).expand(size),
                attn_mask=mask,
                is_causal=mask is None,
                scale=scaling,
            )
        )
    found = torch.cat(mixed, dim=2).flatten(0, 1)
    return found.transpose(0, 1)[None], None


AttentionInterface.register(ATTENTION, packed_attention)
