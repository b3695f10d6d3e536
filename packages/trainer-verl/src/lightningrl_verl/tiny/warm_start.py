"""Supervised warm start of a tiny policy on demonstrations.

Invariant: with the same model, spec, seed and number of threads the result is the same, bit for bit;
a loss that is not finite ends the warm start with an error.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice

import torch
import torch.nn.functional as F  # noqa: N812  (the name everyone knows)
from jaxtyping import Bool, Int
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from lightningrl.errors import RunError
from lightningrl_verl.tiny.spec import TinySpec

Progress = Callable[[int, int, float], None]
"""Called as (updates done, updates in all, action loss of the last update)."""

_BUCKET_BATCHES = 4
"""Batches drawn at once and sorted by length. More would save padding, but then the shortest batches
hold one kind of demonstration only, which unsettles the training."""
_LOSS_WINDOW = 50
"""Updates over which the final loss is averaged."""
_FINAL_RATE = 0.05
"""Learning rate of the last update, as a share of the peak."""


@dataclass(frozen=True, slots=True)
class WarmStart:
    """What a warm start came to."""

    action_loss: float
    """Mean cross-entropy of action tokens, in nats, over the last 50 updates."""
    demonstrations: int
    """Demonstrations seen; each is drawn once."""
    tokens: int
    """Tokens seen, without padding."""


@dataclass(frozen=True, slots=True)
class _Batch:
    """Demonstrations padded on the right to one length."""

    ids: Int[Tensor, "batch seq"]  # noqa: F722
    action: Bool[Tensor, "batch seq"]  # noqa: F722
    """Which tokens are actions: they alone enter the loss."""
    tokens: int
    """Tokens without padding."""
    mean_actions: float
    """Action tokens in a batch, on average over the batches drawn at once."""


def warm_start(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    spec: TinySpec,
    *,
    seed: int,
    threads: int,
    progress: Progress | None = None,
) -> WarmStart:
    """Train `model` in place on `spec`'s demonstrations.

    Raises:
        RunError: if the loss is not finite, or a demonstration is longer than the context.
    """
    optimiser = torch.optim.AdamW(
        model.parameters(),
        lr=spec.learning_rate,
        betas=(0.9, 0.98),
        weight_decay=spec.weight_decay,
        fused=True,
    )
    losses: list[float] = []
    tokens = 0
    model.train()
    with _threads(threads):
        for update, batch in enumerate(islice(_batches(tokenizer, spec, seed), spec.updates)):
            for group in optimiser.param_groups:
                group["lr"] = spec.learning_rate * _rate(update, spec)
            losses.append(_update(model, optimiser, batch))
            tokens += batch.tokens
            if not math.isfinite(losses[-1]):
                raise RunError(
                    f"tiny policy {spec.name!r}: the loss of update {update} is {losses[-1]}:"
                    " lower learning_rate in its spec"
                )
            if progress is not None:
                progress(update + 1, spec.updates, losses[-1])
    model.eval()
    recent = losses[-_LOSS_WINDOW:]
    return WarmStart(sum(recent) / len(recent), spec.updates * spec.batch_size, tokens)


def _update(model: PreTrainedModel, optimiser: torch.optim.Optimizer, batch: _Batch) -> float:
    """Make one update and return the mean loss of the batch's action tokens."""
    logits = model(input_ids=batch.ids[:, :-1], use_cache=False).logits
    action = batch.action[:, 1:]
    loss = F.cross_entropy(logits[action], batch.ids[:, 1:][action], reduction="sum")
    optimiser.zero_grad()
    # A token weighs the same in a batch of short rows, which has few of them, as in one of long rows.
    (loss / batch.mean_actions).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimiser.step()
    return float(loss.detach()) / int(action.sum())


def _rate(update: int, spec: TinySpec) -> float:
    """Return the learning rate as a share of its peak: linear up, then linear down to 5 %."""
    rise = min(1.0, (update + 1) / max(1, spec.warmup_updates))
    return rise * max(_FINAL_RATE, 1 - update / spec.updates)


def _batches(tokenizer: PreTrainedTokenizerFast, spec: TinySpec, seed: int) -> Iterator[_Batch]:
    """Yield batches without end, of similar length within and in random order."""
    rng = random.Random(f"{spec.name}/{seed}")
    while True:
        rows = [_encode(tokenizer, spec, rng) for _ in range(spec.batch_size * _BUCKET_BATCHES)]
        rows.sort(key=lambda row: len(row[0]))
        mean_actions = sum(sum(actions) for _, actions in rows) / _BUCKET_BATCHES
        starts = list(range(0, len(rows), spec.batch_size))
        rng.shuffle(starts)
        for start in starts:
            yield _pad(rows[start : start + spec.batch_size], mean_actions)


def _encode(
    tokenizer: PreTrainedTokenizerFast, spec: TinySpec, rng: random.Random
) -> tuple[list[int], list[bool]]:
    """Return one demonstration's token ids and, for each, whether it is an action."""
    ids: list[int] = []
    actions: list[bool] = []
    for text, is_action in spec.demonstration(rng):
        piece = tokenizer.encode(text, add_special_tokens=False)
        ids += piece
        actions += [is_action] * len(piece)
    if len(ids) > spec.context:
        raise RunError(
            f"tiny policy {spec.name!r}: a demonstration has {len(ids)} tokens, more than its"
            f" context of {spec.context}: raise context in its spec"
        )
    return ids, actions


def _pad(rows: list[tuple[list[int], list[bool]]], mean_actions: float) -> _Batch:
    """Return rows as one batch, padded on the right with token 0."""
    length = max(len(ids) for ids, _ in rows)
    ids = torch.zeros(len(rows), length, dtype=torch.long)
    action = torch.zeros(len(rows), length, dtype=torch.bool)
    for n, (row, actions) in enumerate(rows):
        ids[n, : len(row)] = torch.tensor(row)
        action[n, : len(row)] = torch.tensor(actions)
    return _Batch(ids, action, sum(len(row) for row, _ in rows), mean_actions)


@contextmanager
def _threads(count: int) -> Generator[None]:
    """Give torch `count` threads, and afterwards as many as it had."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
