"""Choosing the next tokens of a batch, each row by its own parameters.

Invariant: the log-prob returned with a token is that of the very distribution it was drawn from
(penalties, temperature, top-k and top-p applied; vLLM's `processed_logprobs`), and at temperature 0 that
of temperature 1. A seeded row draws from a generator of its own, one number per token, so what it gets
does not depend on the rows beside it (up to the rounding of the model's own batched arithmetic).
"""

# Shapes in annotations are no forward references.
# ruff: noqa: F722

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lightningrl_verl.engine.errors import SamplingError

_BLOCK = 256
"""Tokens that are summed up together before one of them is sought."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How one request is sampled. Every field is honoured."""

    max_tokens: int | None = None
    """Most new tokens; None or more than fits = until the context is full."""
    temperature: float = 1.0
    """Logits are divided by it; 0 = greedy. Below 1e-4 quotients overflow and are refused."""
    top_p: float = 1.0
    """Keep the likeliest tokens that together reach this probability; 1 = all."""
    top_k: int = -1
    """Keep this many likeliest tokens (more where they tie with the last); -1 or 0 = all."""
    seed: int | None = None
    """None = not reproducible."""
    stop_token_ids: tuple[int, ...] = ()
    """Tokens that end the answer, besides the model's own end-of-sequence tokens."""
    stop: tuple[str, ...] = ()
    """Texts that end the answer as soon as its tokens say one of them."""
    presence_penalty: float = 0.0
    """Subtracted from the logit of every token that the answer already holds."""
    frequency_penalty: float = 0.0
    """Subtracted once per occurrence in the answer."""

    def __post_init__(self) -> None:
        """Checks every range.

        Raises:
            SamplingError: A value is out of range; the message names the field.
        """
        _require("max_tokens", self.max_tokens is None or self.max_tokens >= 1, "at least 1")
        warm = 1e-4 <= self.temperature < math.inf
        _require("temperature", self.temperature == 0 or warm, "0 or a finite number from 1e-4 up")
        _require("top_p", 0 < self.top_p <= 1, "above 0 and at most 1")
        _require("stop", all(self.stop), "without an empty text")
        _require("top_k", self.top_k >= -1, "-1, 0 or positive")
        for name in ("presence_penalty", "frequency_penalty"):
            _require(name, -2 <= getattr(self, name) <= 2, "between -2 and 2")


def _require(name: str, holds: bool, rule: str) -> None:
    if not holds:
        raise SamplingError(f"{name} must be {rule}")


class SamplingRow:
    """One request's parameters together with the state that its sampling carries from token to token."""

    __slots__ = ("counts", "filtered", "params", "penalised", "random")

    def __init__(self, params: SamplingParams) -> None:
        """Starts at the first token of an answer."""
        self.params = params
        self.random = random.Random(params.seed)
        self.filtered = params.temperature > 0 and (params.top_p < 1 or params.top_k > 0)
        self.penalised = params.presence_penalty != 0 or params.frequency_penalty != 0
        self.counts: dict[int, int] = {}
        """Token id to occurrences in the answer; kept for penalised rows alone."""


def sample(
    logits: Float[Tensor, "rows vocab"], rows: Sequence[SamplingRow]
) -> tuple[list[int], list[float]]:
    """Draws one token per row.

    Returns:
        Token ids and their log-probs. A row with NaN or infinite logits gets a log-prob that is not
        finite, and an arbitrary token.
    """
    scores = _scaled(_penalised(logits.float(), rows), rows)
    probabilities = torch.softmax(scores, dim=-1)
    tokens = _drawn(scores, probabilities, rows)
    chosen = probabilities.gather(1, tokens[:, None])[:, 0].log().tolist()
    ids = tokens.tolist()
    for row, token in zip(rows, ids, strict=True):
        if row.penalised:
            row.counts[token] = row.counts.get(token, 0) + 1
    return ids, chosen


def _penalised(logits: Tensor, rows: Sequence[SamplingRow]) -> Tensor:
    if not any(row.penalised and row.counts for row in rows):
        return logits
    logits = logits.clone()
    for index, row in enumerate(rows):
        if row.penalised and row.counts:
            ids = torch.tensor(list(row.counts), device=logits.device)
            counts = torch.tensor(list(row.counts.values()), device=logits.device)
            penalty = row.params.presence_penalty + row.params.frequency_penalty * counts
            logits[index, ids] -= penalty.to(logits.dtype)
    return logits


def _scaled(logits: Tensor, rows: Sequence[SamplingRow]) -> Tensor:
    divisors = [row.params.temperature or 1.0 for row in rows]
    if any(divisor != 1.0 for divisor in divisors):
        logits = logits / torch.tensor(divisors, device=logits.device)[:, None]
    filtered = [index for index, row in enumerate(rows) if row.filtered]
    if filtered:
        chosen = torch.tensor(filtered, device=logits.device)
        kept = _filtered(logits[chosen], [rows[index].params for index in filtered])
        logits = logits.index_copy(0, chosen, kept)
    return logits


def _filtered(logits: Tensor, params: Sequence[SamplingParams]) -> Tensor:
    """Applies top-k, then top-p to what top-k left, as vLLM does."""
    vocab = logits.shape[1]
    last_kept = [min(p.top_k, vocab) - 1 if p.top_k > 0 else vocab - 1 for p in params]
    ordered, order = logits.sort(dim=-1, descending=True, stable=True)
    threshold = ordered.gather(1, torch.tensor(last_kept, device=logits.device)[:, None])
    ordered = ordered.masked_fill(ordered < threshold, float("-inf"))
    probabilities = ordered.double().softmax(dim=-1)
    before = probabilities.cumsum(dim=-1) - probabilities
    top_p = torch.tensor([p.top_p for p in params], device=logits.device, dtype=torch.float64)
    # top_p = 1 must keep everything, although the running sum can round to 1 before the end.
    outside = (before >= top_p[:, None]) & (top_p[:, None] < 1)
    return torch.empty_like(logits).scatter_(1, order, ordered.masked_fill(outside, float("-inf")))


def _drawn(
    scores: Float[Tensor, "rows vocab"],
    probabilities: Float[Tensor, "rows vocab"],
    rows: Sequence[SamplingRow],
) -> Int[Tensor, " rows"]:
    greedy = [row.params.temperature == 0 for row in rows]
    if all(greedy):
        return scores.argmax(dim=-1)
    uniforms = [0.0 if row.params.temperature == 0 else row.random.random() for row in rows]
    uniform = torch.tensor(uniforms, dtype=torch.float64, device=scores.device)
    tokens = _inverted(probabilities, uniform[:, None])
    if any(greedy):
        is_greedy = torch.tensor(greedy, device=scores.device)
        tokens = torch.where(is_greedy, scores.argmax(dim=-1), tokens)
    return tokens


def _inverted(
    probabilities: Float[Tensor, "rows vocab"], uniform: Float[Tensor, "rows 1"]
) -> Int[Tensor, " rows"]:
    """The token at which the running sum of the probabilities passes `uniform`, a number below 1.

    Sought in two steps, first the block of tokens and then the token in it, so that of a large vocabulary
    only one block per row is summed up in double precision: of 64 rows and 49,152 tokens a third of the time.
    Both steps find a place at which the sum grows: a token of probability zero is never drawn.
    """
    vocab = probabilities.shape[1]
    lacking = -vocab % _BLOCK
    padded = torch.nn.functional.pad(probabilities, (0, lacking)) if lacking else probabilities
    blocks = padded.unflatten(1, (-1, _BLOCK))
    of_blocks = blocks.sum(dim=-1).double()
    block, inside = _passed(of_blocks, uniform)
    chosen = blocks[torch.arange(len(blocks), device=blocks.device), block[:, 0]].double()
    place, _ = _passed(chosen, inside)
    return (block * _BLOCK + place)[:, 0].clamp_(max=vocab - 1)


def _passed(
    sizes: Float[Tensor, "rows parts"], uniform: Float[Tensor, "rows 1"]
) -> tuple[Int[Tensor, "rows 1"], Float[Tensor, "rows 1"]]:
    """The part in which `uniform` of the whole falls, and where in it, as a share of the part."""
    ends = sizes.cumsum(dim=-1)
    # The factor keeps the target below the whole even after rounding.
    target = uniform * (1 - 1e-12) * ends[:, -1:]
    part = torch.searchsorted(ends, target, right=True).clamp_(max=sizes.shape[1] - 1)
    size = sizes.gather(1, part)
    return part, ((target - (ends.gather(1, part) - size)) / size).clamp_(0, 1)
