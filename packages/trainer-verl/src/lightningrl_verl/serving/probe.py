"""Do engine and trainer hold the same weights? Score the same tokens with both and compare.

Stale or misplaced weights make every ratio wrong while the loss still looks plausible. Invariants: a
probe passes only if the largest difference over all probed tokens is within the tolerance; and where an
engine can tell what it holds, only if these are the trainer's weights bit by bit, since weights of one update
ago differ by less than bf16 does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightningrl.errors import RunError
from lightningrl_verl.engine.weights import digest
from lightningrl_verl.worker.batch import FloatArray, TrainingRow

EngineScore = Callable[[Sequence[int], Sequence[int]], Sequence[float]]
"""(prompt ids, token ids) to the log-prob of each token id, at temperature 1."""


class Scorer(Protocol):
    """The trainer's side; `VerlBackend` is one."""

    @property
    def vocabulary(self) -> int:
        """Token ids run from 0 to one less."""
        ...

    def log_probs(
        self, rows: Sequence[TrainingRow], temperature: float | None = None
    ) -> list[FloatArray]:
        """Per row (T,), aligned with its tokens, 0 where not masked."""
        ...


@dataclass(frozen=True)
class Held:
    """Weights that a trainer holds, as an engine would hold them."""

    names: Sequence[str]
    digest: str
    """Of their values, rounded to the engine's dtype."""


def held(named_tensors: Iterable[tuple[str, Tensor]], dtype: torch.dtype) -> Held:
    """The trainer's weights as engines of a dtype hold them."""
    found = sorted(named_tensors, key=lambda one: one[0])
    return Held([name for name, _ in found], digest((name, one.to(dtype)) for name, one in found))


def check_digests(trainer: Held, of_engines: Sequence[str]) -> None:
    """See that engines hold the trainer's very weights.

    Raises:
        WeightMismatch: one does not.
    """
    if any(one != trainer.digest for one in of_engines):
        raise WeightMismatch(
            "the engine does not hold the trainer's weights, though it took some: their digests differ."
            " Start the run again; it goes on from its newest checkpoint"
        )


class WeightMismatch(RunError):
    """Engine and trainer disagree on log-probs: they don't hold the same weights."""


@dataclass(frozen=True)
class ProbeSequence:
    """One sequence to score."""

    prompt_ids: Sequence[int]
    """At least one token."""
    token_ids: Sequence[int]
    """What follows the prompt: these are compared. At least one."""


@dataclass(frozen=True)
class ProbeResult:
    """What a probe found."""

    max_abs_difference: float
    """Largest difference of a token's log-prob, in nats."""
    tokens: int
    """How many were compared."""


@dataclass(frozen=True)
class _ProbeRow:
    token_ids: NDArray[np.int32]
    mask: NDArray[np.bool_]
    advantages: FloatArray
    rollout_id: str = "probe"


def probe(
    engine_score: EngineScore,
    backend: Scorer,
    sequences: Sequence[ProbeSequence] | None = None,
    *,
    tolerance: float,
) -> ProbeResult:
    """Compare the engine's log-probs with the trainer's, both at temperature 1.

    Args:
        engine_score: the engine under the version that has just been synchronised.
        backend: the trainer.
        sequences: what to score; None for some fixed ones of random tokens, which reach every layer
            and depend on no data.
        tolerance: largest difference that passes, in nats. Between two fp32 forward passes 1e-4 is
            ample; in bf16 they differ by some 1e-2.

    Raises:
        WeightMismatch: the difference is larger, or not a number.
        RunError: there is nothing to compare.
    """
    chosen = random_sequences(backend.vocabulary) if sequences is None else sequences
    if not chosen:
        raise RunError("a probe needs at least one sequence; take one from the iteration's rows")
    scored = backend.log_probs([_row(sequence) for sequence in chosen], 1.0)
    differences: list[float] = []
    for sequence, trainer in zip(chosen, scored, strict=True):
        engine = engine_score(sequence.prompt_ids, sequence.token_ids)
        of_tokens: list[float] = trainer[len(sequence.prompt_ids) :].tolist()
        differences += [abs(a - b) for a, b in zip(engine, of_tokens, strict=True)]
    worst = float(np.max(differences))
    if not worst <= tolerance:
        raise WeightMismatch(
            f"engine and trainer differ by {worst:.3g} nats over {len(differences)} tokens "
            f"(tolerance {tolerance:g}): the engine does not hold the trainer's weights, or computes "
            "otherwise; check that the weights were swapped after the last update and that both use the "
            "same precision, or set 'trainer.probe_tolerance'"
        )
    return ProbeResult(max_abs_difference=worst, tokens=len(differences))


def random_sequences(vocabulary: int) -> list[ProbeSequence]:
    """Four sequences of 8 + 24 token ids, the same for the same vocabulary."""
    drawn = np.random.default_rng(0).integers(0, vocabulary, (4, 32)).tolist()
    return [ProbeSequence(prompt_ids=ids[:8], token_ids=ids[8:]) for ids in drawn]


def _row(sequence: ProbeSequence) -> _ProbeRow:
    prompt, tokens = len(sequence.prompt_ids), len(sequence.token_ids)
    return _ProbeRow(
        token_ids=np.array([*sequence.prompt_ids, *sequence.token_ids], np.int32),
        mask=np.arange(prompt + tokens) >= prompt,
        advantages=np.zeros(prompt + tokens, np.float32),
    )
