"""Have runners run rollouts, and wait for them without polling."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from lightningrl.errors import RunError
from lightningrl.schema import Mode, NewRollout, Progress, RolloutState
from lightningrl.store.base import RolloutQuery, Store

_WAIT_SECONDS = 5.0
"""Longest long poll; between two of them `on_progress` is called whether or not anything ended."""
_EXAMPLES = 3


async def collect(
    store: Store,
    rollouts: Sequence[NewRollout],
    *,
    on_progress: Callable[[Progress], None],
) -> Progress:
    """Enqueue rollouts of one (run, mode, iteration, variant) and wait until all have ended.

    Returns:
        The final counts.

    Raises:
        RunError: every one of them failed; the message has what the first few failed of.
    """
    first = rollouts[0]
    await store.enqueue(rollouts)
    progress = Progress()
    seen = -1
    while True:
        progress = await store.progress(
            first.run,
            first.mode,
            first.iteration,
            variant=first.variant,
            seen=seen,
            wait_seconds=_WAIT_SECONDS,
        )
        on_progress(progress)
        if progress.total and progress.ended == progress.total:
            break
        seen = progress.ended
    if progress.succeeded == 0:
        raise RunError(await _why_all_failed(store, first.run, first.mode, first.iteration))
    return progress


async def _why_all_failed(store: Store, run: str, mode: Mode, iteration: int) -> str:
    failed = await store.rollouts(
        RolloutQuery(run=run, mode=mode, iteration=iteration, states=(RolloutState.FAILED,))
    )
    attempts = await store.attempts([rollout.id for rollout in failed])
    reasons = Counter(
        f"{attempt.failure.kind.value}: {attempt.failure.message}"
        for attempt in attempts
        if attempt.failure is not None
    )
    lines = [f"  {count} x {reason}" for reason, count in reasons.most_common(_EXAMPLES)]
    return "\n".join(
        [
            f"all {mode.value} rollouts of iteration {iteration} failed, so there is nothing to"
            " learn from. What they failed of:",
            *lines,
            "Try the agent alone with: lightningrl try RECIPE --policy URL --tasks 1",
            "Rollouts that failed stay failed: when it is mended, give the run another 'name', or"
            " remove its folder.",
        ]
    )
