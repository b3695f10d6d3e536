"""Key/value memory in slots, read and written by a Hugging Face model through its own cache seam.

Invariant: column `c` of a slot is only ever attended to by queries at positions `>= c` of the request
that owns the slot, so stale columns need no clearing and nothing is allocated after the first forward
(of the model, or since `free`).
"""

# Shapes in annotations are no forward references.
# ruff: noqa: F722

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import Cache
from transformers.modeling_utils import AttentionInterface
from typing_extensions import override

ATTENTION = "lightningrl_slots"
"""The name under which `slot_attention` is known to transformers."""

_REFUSED_ATTENTION_ARGUMENTS = ("sliding_window", "softcap", "s_aux", "position_bias")


@dataclass(frozen=True, slots=True)
class Placement:
    """Where one forward pass writes its keys and values, and what it reads back."""

    slots: Int[Tensor, "rows 1"]
    """The slot of each row."""
    columns: Int[Tensor, "rows tokens"]
    """The column each token is written to; `max_len` (the scrap column) for padding."""
    span: int
    """Columns `0 .. span-1` are read back."""
    fresh: bool
    """Whether every row starts at column 0, so that the tokens at hand are all there is to read."""
    leading: bool
    """Whether the rows are slots `0 .. rows-1`: the read is then a view instead of a copy."""


class SlotCache(Cache):
    """Keys and values `[slots, kv_heads, max_len + 1, head_dim]` per layer; the last column is scrap."""

    placement: Placement
    """Must be set before each forward pass of the model."""

    def __init__(self, slots: int, max_len: int) -> None:
        """Allocates nothing yet: the first pass through a layer shows its heads, size and dtype."""
        super().__init__(layers=[])
        self._slots = slots
        self._max_len = max_len
        self._keys: list[Tensor] = []
        self._values: list[Tensor] = []

    @override
    def update(
        self,
        key_states: Float[Tensor, "rows kv_heads tokens head_dim"],
        value_states: Float[Tensor, "rows kv_heads tokens head_dim"],
        layer_idx: int,
        *args: Any,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor]:
        """Stores the new columns and returns all that the rows may attend to."""
        if layer_idx == len(self._keys):
            self._keys.append(self._allocate(key_states))
            self._values.append(self._allocate(value_states))
        place = self.placement
        keys, values = self._keys[layer_idx], self._values[layer_idx]
        keys[place.slots, :, place.columns] = key_states.transpose(1, 2)
        values[place.slots, :, place.columns] = value_states.transpose(1, 2)
        if place.fresh:
            return key_states, value_states
        if place.leading:
            rows = slice(place.slots.shape[0])
            return keys[rows, :, : place.span], values[rows, :, : place.span]
        # Indexing by a tensor would take 1.6 times as long, in bf16 ten times.
        chosen = place.slots[:, 0]
        return (
            keys[:, :, : place.span].index_select(0, chosen),
            values[:, :, : place.span].index_select(0, chosen),
        )

    def copy(self, source: int, target: int, columns: int) -> None:
        """Gives slot `target` the first columns of slot `source`."""
        for memory in (*self._keys, *self._values):
            memory[target, :, :columns] = memory[source, :, :columns]

    def free(self) -> None:
        """Gives the memory back; the next pass allocates anew."""
        self._keys.clear()
        self._values.clear()

    @override
    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Zero: positions and masks are always explicit, a model must not derive them from here."""
        return 0

    def _allocate(self, like: Tensor) -> Tensor:
        _, kv_heads, _, head_dim = like.shape
        return like.new_zeros(self._slots, kv_heads, self._max_len + 1, head_dim)


def slot_attention(
    module: torch.nn.Module,
    query: Float[Tensor, "rows heads tokens head_dim"],
    key: Float[Tensor, "rows kv_heads span head_dim"],
    value: Float[Tensor, "rows kv_heads span head_dim"],
    attention_mask: Bool[Tensor, "rows 1 tokens span"] | None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """SDPA whose query heads of a group share their keys and values without a copy.

    transformers copies keys and values once per query head of a group wherever there is a mask. Of a single query
    per row the heads of a group stand in the place of successive queries; otherwise key/value heads stand in the
    batch, and the heads of their group see an expanded view. Without a mask it is causal: the tokens at hand are all
    there is.

    Raises:
        NotImplementedError: The layer asks for attention that a slot cache does not provide.
    """
    del module
    refuse_special_attention(kwargs)
    rows, heads, tokens, head_dim = query.shape
    kv_heads = key.shape[1]
    if tokens == 1 and attention_mask is not None:
        group = heads // kv_heads
        mixed = scaled_dot_product_attention(
            query.reshape(rows, kv_heads, group, head_dim),
            key,
            value,
            attn_mask=attention_mask.expand(-1, -1, group, -1),
            scale=scaling,
        )
        return mixed.reshape(rows, 1, heads, value.shape[3]), None
    queries = query.reshape(rows * kv_heads, -1, tokens, head_dim)
    size = (-1, queries.shape[1], -1, -1)
    mixed = scaled_dot_product_attention(
        queries,
        key.flatten(0, 1)[:, None].expand(size),
        value.flatten(0, 1)[:, None].expand(size),
        attn_mask=None if attention_mask is None else attention_mask.repeat_interleave(kv_heads, 0),
        is_causal=attention_mask is None,
        scale=scaling,
    )
    return mixed.reshape(rows, heads, tokens, value.shape[3]).transpose(1, 2), None


def refuse_special_attention(arguments: Mapping[str, Any]) -> None:
    """See that a layer asks for nothing but full causal attention.

    Raises:
        NotImplementedError: it asks for a window, soft caps, sinks or a bias of positions.
    """
    for name in _REFUSED_ATTENTION_ARGUMENTS:
        if arguments.get(name) is not None:
            raise NotImplementedError(f"attention with `{name}`={arguments[name]!r}")


AttentionInterface.register(ATTENTION, slot_attention)
