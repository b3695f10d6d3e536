"""Which rows share an optimiser step.

Invariant: every row is in exactly one mini-batch, and all rows of a rollout are in the same, so that no
part of a rollout is trained on weights that another part of it has changed.
"""

from __future__ import annotations

from collections.abc import Sequence


def cut_by_rollout(rollout_ids: Sequence[str], most: int) -> list[list[int]]:
    """Row indices of each mini-batch, in order; the rollouts are spread evenly, in order.

    Args:
        rollout_ids: of each row.
        most: mini-batches at most; never more than there are rollouts. No rows give none.
    """
    rows_of: dict[str, list[int]] = {}
    for index, rollout_id in enumerate(rollout_ids):
        rows_of.setdefault(rollout_id, []).append(index)
    rollouts = list(rows_of.values())
    size = -(-len(rollouts) // most)
    return [
        [index for rows in rollouts[start : start + size] for index in rows]
        for start in range(0, len(rollouts), max(size, 1))
    ]
