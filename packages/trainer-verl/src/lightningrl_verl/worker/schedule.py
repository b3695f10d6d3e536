"""The learning rate's schedule, as a pure function of the number of updates done.

Invariant: no update runs at learning rate 0 unless the recipe says so. verl's schedules
(`utils/torch_functional.py:712,768` of 0.9.1) warm up from 0, which wastes the first update, and
have no linear decay.
"""

from __future__ import annotations

import math
from typing import Literal

Schedule = Literal["constant", "linear", "cosine"]


def learning_rate_factor(
    updates: int, *, schedule: Schedule, warmup: int, total: int, min_ratio: float
) -> float:
    """What the base learning rate is multiplied by for the update number `updates` (from 0).

    Args:
        updates: updates done before this one.
        schedule: shape after the warm-up.
        warmup: updates that rise linearly, 1/warmup for the first to 1 for the last; 0 for none.
        total: updates of the whole run; beyond it the factor stays at its last value.
        min_ratio: what "linear" and "cosine" end at, reached at `total`.
    """
    if updates < warmup:
        return (updates + 1) / warmup
    if schedule == "constant":
        return 1.0
    progress = min(1.0, (updates - warmup) / max(1, total - warmup))
    remaining = (
        1.0 - progress if schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * progress))
    )
    return min_ratio + (1.0 - min_ratio) * remaining
