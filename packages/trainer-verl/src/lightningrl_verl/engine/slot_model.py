"""A Hugging Face causal LM driven over a slot cache: batched prefill, one-token decode, plain scoring.

Invariant: the logits of a row equal those of the model's plain forward over that row's tokens, up to
rounding. A probe at construction checks it, so a model that the scheme does not fit is refused there.
Only one thread may use an instance after construction.
"""

# Shapes in annotations are no forward references.
# ruff: noqa: F722

import copy
from collections.abc import Sequence
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from lightningrl_verl.engine.cache import ATTENTION, Placement, SlotCache
from lightningrl_verl.engine.errors import UnsupportedModelError
from lightningrl_verl.engine.head import exact_head

_SPAN_STEP = 32
"""Read-back is rounded up to this many columns, which keeps matrix shapes few."""

_PROBE_TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-3}
"""Largest error of centred logits relative to their norm; `_PROBE_TOLERANCE_HALF` for other dtypes."""
_PROBE_TOLERANCE_HALF = 0.1

MIN_MODEL_LEN = 8
"""The probe's sequence must fit."""


class SlotModel:
    """The engine's own copy of a model, with key/value slots."""

    def __init__(self, model: PreTrainedModel, *, slots: int, max_len: int) -> None:
        """Copies `model` to evaluation mode without gradients, and probes the copy.

        Raises:
            UnsupportedModelError: The model needs more than standard attention over all positions.
        """
        self.slots = slots
        self.max_len = max_len
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self.device = next(self.model.parameters()).device
        self.vocab_size = int(model.config.get_text_config().vocab_size)
        self._name = type(model).__name__
        self._cache = SlotCache(slots, max_len)
        self._columns = torch.arange(max_len, device=self.device)
        self._last: Tensor | None = None
        self._shapes: dict[torch.nn.Parameter, torch.Size] = {}
        """Of weights whose memory was given back."""
        self._attach()
        self._probe()

    @torch.inference_mode()
    def prefill(
        self, slots: Sequence[int], tokens: Sequence[Sequence[int]], starts: Sequence[int]
    ) -> Float[Tensor, "rows vocab"]:
        """Appends each row's tokens to its slot, from column `starts[row]` on.

        Returns:
            The logits after each row's last token. Rows may be of any lengths above 0.
        """
        lengths = [len(row) for row in tokens]
        width = max(lengths)
        ids = torch.tensor([[*row, *[0] * (width - len(row))] for row in tokens])
        offsets = torch.arange(width, device=self.device)
        first = torch.tensor(starts, device=self.device)[:, None]
        length = torch.tensor(lengths, device=self.device)[:, None]
        is_padding = offsets >= length
        positions = (first + offsets).masked_fill(is_padding, 0)
        fresh = not any(starts)
        span = width if fresh else self._span(max(map(sum, zip(starts, lengths, strict=True))))
        self._cache.placement = Placement(
            slots=torch.tensor(slots, device=self.device)[:, None],
            columns=positions.masked_fill(is_padding, self.max_len),
            span=span,
            fresh=fresh,
            leading=False,
        )
        self._last = length[:, 0] - 1
        # Padding stands behind a row's tokens, which do not look there.
        return self._forward(ids, positions, None if fresh else span)

    @torch.inference_mode()
    def decode(
        self, slots: Sequence[int], tokens: Sequence[int], positions: Sequence[int]
    ) -> Float[Tensor, "rows vocab"]:
        """Appends one token per row, at column and position `positions[row]` of its slot.

        Args:
            slots: Ascending.
            tokens: The newest token of each row.
            positions: How many tokens each slot holds already.
        """
        occupied = slots[-1] + 1
        leading = occupied <= 2 * len(slots)
        if leading and occupied > len(slots):
            return self._decode_with_holes(slots, tokens, positions)[list(slots)]
        column = torch.tensor(positions, device=self.device)[:, None]
        span = self._span(max(positions) + 1)
        rows = torch.tensor(slots, device=self.device)[:, None]
        self._cache.placement = Placement(rows, column, span, fresh=False, leading=leading)
        self._last = None
        return self._forward(torch.tensor(tokens)[:, None], column, span)

    def _decode_with_holes(
        self, slots: Sequence[int], tokens: Sequence[int], positions: Sequence[int]
    ) -> Tensor:
        """Decodes slots `0 .. slots[-1]`; rows of idle slots write to the scrap column."""
        rows = slots[-1] + 1
        ids, where, columns = [0] * rows, [0] * rows, [self.max_len] * rows
        for slot, token, position in zip(slots, tokens, positions, strict=True):
            ids[slot], where[slot], columns[slot] = token, position, position
        span = self._span(max(positions) + 1)
        self._cache.placement = Placement(
            torch.arange(rows, device=self.device)[:, None],
            torch.tensor(columns, device=self.device)[:, None],
            span,
            fresh=False,
            leading=True,
        )
        self._last = None
        return self._forward(
            torch.tensor(ids)[:, None], torch.tensor(where, device=self.device)[:, None], span
        )

    @torch.inference_mode()
    def copy(self, source: int, target: int, columns: int) -> None:
        """Gives slot `target` the first columns of slot `source`."""
        self._cache.copy(source, target, columns)

    def free(self) -> None:
        """Gives the memory of keys, values and weights back; only `weights.plan` may be used until `allocate`."""
        self._cache.free()
        for parameter in self.model.parameters():
            self._shapes[parameter] = parameter.shape
            parameter.data = parameter.data.new_empty(0)

    def allocate(self) -> None:
        """Takes memory for weights again; their values are undefined until they are replaced."""
        for parameter, shape in self._shapes.items():
            parameter.data = parameter.data.new_empty(shape)
        self._shapes.clear()

    @torch.inference_mode()
    def logits(self, tokens: Sequence[int]) -> Float[Tensor, "tokens vocab"]:
        """The plain forward over one sequence, without slots."""
        self._last = None
        ids = torch.tensor([tokens], device=self.device)
        return self._call(input_ids=ids, use_cache=False)[0]

    def _forward(self, ids: Tensor, positions: Tensor, span: int | None) -> Tensor:
        """`span`: columns that rows look back at. `None`: the tokens at hand are all there is."""
        mask = None if span is None else (self._columns[:span] <= positions[:, :, None])[:, None]
        logits = self._call(
            input_ids=ids.to(self.device),
            attention_mask=mask,
            position_ids=positions,
            past_key_values=self._cache,
            use_cache=True,
        )
        return logits[:, -1]

    def _call(self, **inputs: Any) -> Tensor:
        return cast("Tensor", self.model(**inputs).logits)

    def _span(self, needed: int) -> int:
        return min(-(-needed // _SPAN_STEP) * _SPAN_STEP, self.max_len)

    def _attach(self) -> None:
        head = cast("torch.nn.Module | None", self.model.get_output_embeddings())
        if head is None:
            raise UnsupportedModelError(f"{self._name} has no output embedding to read logits from")
        exact_head(head, self._last_states, serves=True)
        try:
            self.model.set_attn_implementation(ATTENTION)
        except ValueError as error:
            raise UnsupportedModelError(f"{self._name} has a fixed attention: {error}") from error

    def _last_states(self, states: Tensor) -> Tensor:
        """Reduces a ragged prefill to each row's last token before the costly head."""
        if self._last is None:
            return states
        rows = torch.arange(states.shape[0], device=states.device)
        return states[rows, self._last][:, None]

    def _probe(self) -> None:
        """Runs ragged prefill, continuation and decode once, and compares with the plain forward."""
        rows = [[(7 * i + 3 * row) % self.vocab_size for i in range(7 - row)] for row in range(2)]
        rows = rows[: self.slots]
        slots = list(range(len(rows)))
        try:
            seen = [self.prefill(slots, [row[:-3] for row in rows], [0] * len(rows))]
            starts = [len(row) - 3 for row in rows]
            seen.append(self.prefill(slots, [row[-3:-1] for row in rows], starts))
            seen.append(
                self.decode(slots, [row[-1] for row in rows], [len(row) - 1 for row in rows])
            )
            plain = torch.stack([self.logits(row)[[-4, -2, -1]] for row in rows], dim=1)
        except Exception as error:
            raise UnsupportedModelError(
                f"{self._name} does not run over a slot cache ({type(error).__name__}: {error}); the "
                "torch engine serves decoders with full causal attention alone: use the vllm engine"
            ) from error
        error = _relative_error(torch.stack(seen), plain)
        # Of hidden states: logits are fp32 in any case.
        dtype = next(self.model.parameters()).dtype
        limit = _PROBE_TOLERANCE.get(dtype, _PROBE_TOLERANCE_HALF)
        if not error <= limit:
            raise UnsupportedModelError(
                f"{self._name} over a slot cache differs from its plain forward by {error:.2g} of the "
                f"logits' size (limit {limit:g}): it needs more than full causal attention, or its "
                "weights are not finite; use the vllm engine"
            )


def _relative_error(seen: Tensor, plain: Tensor) -> float:
    seen, plain = (x.double() - x.double().mean(dim=-1, keepdim=True) for x in (seen, plain))
    size = torch.linalg.vector_norm(plain).clamp(min=1e-30)
    return float(torch.linalg.vector_norm(seen - plain) / size)
