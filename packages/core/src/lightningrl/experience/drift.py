"""The drift report: what was trained of what was sampled, and how far engine and trainer are apart.

In supervised fine-tuning the tokens are those of demonstrations, of which an engine sampled some and others not.

Invariants:
- Of a policy's sampled tokens each is trained, masked or dropped: the three add up.
- Sums come before shares: a report of many rollouts is what its parts' counts give.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

import msgspec
import numpy as np

from lightningrl.experience.tokens import LogProbs
from lightningrl.experience.trajectory import Break, Merge, Row, Span
from lightningrl.schema import RolloutId


class Gap(msgspec.Struct, frozen=True):
    """Absolute difference between the engine's and the trainer's log-probs of trained tokens."""

    tokens: int
    """How many, at least one."""
    mean: float
    """Nats per token."""
    max: float
    """Nats."""


class RowDrift(msgspec.Struct, frozen=True):
    """One row."""

    tokens: int
    """Its length."""
    trained: int
    spans: tuple[Span, ...]
    """Where each call's trained tokens stand."""
    gap: Gap | None = None
    """`None`: the row was not part of an update."""


class RolloutDrift(msgspec.Struct, frozen=True):
    """What one policy's calls of one rollout became."""

    rollout: RolloutId
    policy: str
    """Alias."""
    sampled: int
    """Tokens that the policy sampled."""
    masked: int
    """Those of them that stand in a row as context."""
    dropped: int
    """Those of them that stand in no row."""
    untrainable: dict[str, int]
    """Reason -> tokens masked or dropped for it."""
    continued: int
    """Calls that continued a row."""
    continuing: int
    """Calls that should have."""
    breaks: tuple[Break, ...]
    """The calls that should have and did not, with both token windows."""
    rows: tuple[RowDrift, ...]
    rendered: int = 0
    """Trained tokens that no engine sampled: they were tokenised from a demonstration's text. 0 in RL updates."""

    @property
    def sums(self) -> Drift:
        """The report of this one alone."""
        return Drift(
            rollouts=1,
            sampled=self.sampled,
            masked=self.masked,
            dropped=self.dropped,
            untrainable=self.untrainable,
            continued=self.continued,
            continuing=self.continuing,
            breaks=dict(Counter(broken.cause for broken in self.breaks)),
            gap=joined(row.gap for row in self.rows),
            rendered=self.rendered,
        )


class Drift(msgspec.Struct, frozen=True):
    """Many rollouts together."""

    rollouts: int = 0
    """Pairs of rollout and policy."""
    sampled: int = 0
    masked: int = 0
    dropped: int = 0
    untrainable: dict[str, int] = {}
    continued: int = 0
    continuing: int = 0
    breaks: dict[str, int] = {}
    """Cause -> breaks."""
    gap: Gap | None = None
    rendered: int = 0
    """As `RolloutDrift.rendered`."""

    @property
    def trained(self) -> int:
        """Tokens under a True mask."""
        return self.sampled - self.masked - self.dropped

    @property
    def merged_share(self) -> float | None:
        """Of the calls that should continue a row the share that did. `None`: there was none."""
        return self.continued / self.continuing if self.continuing else None


class DriftReport(msgspec.Struct, frozen=True):
    """A run's `drift.json`."""

    run: Drift = Drift()
    """All iterations together."""
    iterations: dict[str, Drift] = {}

    def with_iteration(self, iteration: int, drift: Drift) -> DriftReport:
        """The report with one iteration more; what it has of that one and of later ones is replaced."""
        kept = {name: one for name, one in self.iterations.items() if int(name) < iteration}
        kept[str(iteration)] = drift
        return DriftReport(run=_sum(kept.values()), iterations=kept)


def rollout_drift(rollout: RolloutId, policy: str, merged: Merge) -> RolloutDrift:
    """The drift of a rollout that was merged, without gaps."""
    rows = tuple(RowDrift(len(row.token_ids), row.trained_tokens, row.spans) for row in merged.rows)
    left_out = sum(merged.untrainable.values())
    return RolloutDrift(
        rollout=rollout,
        policy=policy,
        sampled=sum(row.trained for row in rows) + left_out,
        masked=merged.masked,
        dropped=left_out - merged.masked,
        untrainable=merged.untrainable,
        continued=merged.continued,
        continuing=merged.continuing,
        breaks=merged.breaks,
        rows=rows,
    )


def total(drifts: Iterable[RolloutDrift]) -> Drift:
    """All of `drifts` together; none give zeros."""
    return _sum(one.sums for one in drifts)


def log_prob_gaps(rows: Sequence[Row], current: Sequence[LogProbs]) -> list[Gap]:
    """How far the engine's log-probs are from `current`, per row.

    Args:
        rows: each with a trained token.
        current: per row (T,), the trainer's log-probs under the weights before the update.
    """
    return [
        _gap(row.logprobs[row.mask], now[row.mask]) for row, now in zip(rows, current, strict=True)
    ]


def joined(gaps: Iterable[Gap | None]) -> Gap | None:
    """The gap over the tokens of all; `None` where there is none."""
    known = [gap for gap in gaps if gap is not None]
    if not known:
        return None
    tokens = sum(gap.tokens for gap in known)
    mean = sum(gap.mean * gap.tokens for gap in known) / tokens
    return Gap(tokens, mean, max(gap.max for gap in known))


def _gap(engine: LogProbs, trainer: LogProbs) -> Gap:
    apart = np.abs(engine.astype(np.float64) - trainer)
    return Gap(len(apart), float(apart.mean()), float(apart.max()))


def _sum(drifts: Iterable[Drift]) -> Drift:
    every = list(drifts)
    untrainable: Counter[str] = Counter()
    breaks: Counter[str] = Counter()
    for one in every:
        untrainable.update(one.untrainable)
        breaks.update(one.breaks)
    return Drift(
        rollouts=sum(one.rollouts for one in every),
        sampled=sum(one.sampled for one in every),
        masked=sum(one.masked for one in every),
        dropped=sum(one.dropped for one in every),
        untrainable=dict(untrainable),
        continued=sum(one.continued for one in every),
        continuing=sum(one.continuing for one in every),
        breaks=dict(breaks),
        gap=joined(one.gap for one in every),
        rendered=sum(one.rendered for one in every),
    )
