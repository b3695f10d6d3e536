"""Have runners run rollouts, and wait for them without polling."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from msgspec import structs

from lightningrl.errors import RunError
from lightningrl.recipe import Algorithm, Recipe
from lightningrl.schema import (
    AGENT_FAILURES,
    GroupId,
    Mode,
    NewRollout,
    Progress,
    RolloutId,
    RolloutState,
)
from lightningrl.store.base import RolloutQuery, Store
from lightningrl_verl.training.batches import Task, further_rollouts, training_rollouts
from lightningrl_verl.training.forks import Forked, forks_of, judge_branches

_WAIT_SECONDS = 5.0
"""Longest long poll; between two of them `on_progress` is called whether or not anything ended."""
_EXAMPLES = 3


async def collect(
    store: Store,
    rollouts: Sequence[NewRollout],
    *,
    on_progress: Callable[[Progress], None],
    failures_count: bool = False,
) -> Progress:
    """Enqueue rollouts of one (run, mode, iteration, variant) and wait until all have ended.

    Where all of them had failed before this call, an earlier start stopped on that; since then
    whatever was wrong may have been mended, so they are tried again.

    Args:
        store: where they are run from.
        rollouts: at least one.
        on_progress: told of the counts.
        failures_count: whether failing is an outcome like others (`algorithm.failure_reward`) where the agent is to
            blame for one of the failures at least.

    Returns:
        The final counts.

    Raises:
        RunError: every one of them failed, and that does not count; the message has what the first few failed
            of. Or some were deleted meanwhile.
    """
    first = rollouts[0]
    if not (failures_count and await _agents_failed(store, first)):
        await _retry_if_all_failed(store, first)
    progress = await _run(store, rollouts, on_progress)
    if progress.succeeded == 0 and not (failures_count and await _agents_failed(store, first)):
        raise RunError(await _why_all_failed(store, first.run, first.mode, first.iteration))
    return progress


async def _run(
    store: Store, rollouts: Sequence[NewRollout], on_progress: Callable[[Progress], None]
) -> Progress:
    """Enqueue rollouts, and wait until all have ended."""
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
        if progress.total < len(rollouts):
            raise RunError(_deleted(first, len(rollouts) - progress.total))
        if progress.ended == progress.total:
            break
        seen = progress.ended
    return progress


async def _agents_failed(store: Store, first: NewRollout) -> bool:
    """Whether a rollout failed by its agent's fault, as a policy's own mistakes do."""
    query = RolloutQuery(
        run=first.run,
        mode=first.mode,
        iteration=first.iteration,
        variant=first.variant,
        states=(RolloutState.FAILED,),
        failure_kinds=tuple(AGENT_FAILURES),
        limit=1,
    )
    return bool(await store.rollouts(query))


async def _retry_if_all_failed(store: Store, first: NewRollout) -> None:
    before = await store.progress(first.run, first.mode, first.iteration, variant=first.variant)
    if before.succeeded or not before.failed or before.ended < before.total:
        return
    failed = await store.rollouts(
        RolloutQuery(
            run=first.run,
            mode=first.mode,
            iteration=first.iteration,
            variant=first.variant,
            states=(RolloutState.FAILED,),
        )
    )
    await store.retry([one.id for one in failed])


@dataclass(frozen=True)
class Collected:
    """The training rollouts of one iteration have ended."""

    flat: Mapping[GroupId, Sequence[float]]
    """Groups without signal, to be skipped, with the rewards of their usable members; always empty without
    dynamic sampling."""
    further: int
    """Tasks that were added in place of such groups."""
    forked: Forked
    """Its branches; of none without `algorithm.forks`."""


async def collect_training(
    store: Store,
    recipe: Recipe,
    tasks: Sequence[Task],
    iteration: int,
    *,
    on_progress: Callable[[Progress], None],
) -> Collected:
    """Have an iteration's training rollouts run, further tasks in place of groups without signal, then its forks.

    It adds as many tasks as it takes for `tasks_per_iteration` groups with signal, but no more than
    `algorithm.further_tasks`. Called again after a crash, it finds what has run and goes on.

    Raises:
        RunError: every rollout failed, and `algorithm.failure_reward` rewards none of the failures; or every fork
            diverged.
    """
    algorithm = recipe.algorithm
    assert algorithm is not None
    rollouts = training_rollouts(recipe, tasks, iteration)
    if not rollouts:  # it trains on live rollouts alone
        return Collected({}, 0, Forked())
    count = algorithm.failure_reward is not None
    await collect(store, rollouts, on_progress=on_progress, failures_count=count)
    flat: dict[GroupId, list[float]] = {}
    further = 0
    while algorithm.further_tasks:
        rewards = await _rewards(store, recipe.name, iteration, algorithm)
        flat = {one: of_group for one, of_group in rewards.items() if _is_flat(of_group, algorithm)}
        more = further_rollouts(recipe, tasks, iteration, further, len(flat))
        if not more:
            break
        await collect(store, more, on_progress=on_progress, failures_count=count)
        further += len({rollout.group_id for rollout in more})
    forked = await _collect_forks(store, recipe, iteration, flat, on_progress)
    return Collected(flat, further, forked)


async def _collect_forks(
    store: Store,
    recipe: Recipe,
    iteration: int,
    flat: Mapping[GroupId, Sequence[float]],
    on_progress: Callable[[Progress], None],
) -> Forked:
    """Have the forks of groups that will be taken run."""
    algorithm = recipe.algorithm
    assert algorithm is not None
    if algorithm.forks is None:
        return Forked()
    rewards = await _rewards(store, recipe.name, iteration, algorithm)
    enough = max(algorithm.min_group, 1)
    groups = [one for one, of_group in rewards.items() if len(of_group) >= enough]
    taken = [one for one in groups if one not in flat]
    branches = await forks_of(store, recipe, iteration, taken)
    if branches:
        await _retry_if_all_failed(store, branches[0])
        await _run(store, branches, on_progress)
    return await judge_branches(store, recipe, branches)


def _is_flat(rewards: Sequence[float], algorithm: Algorithm) -> bool:
    """Whether a group teaches nothing: too few usable members, or all of one reward."""
    return len(rewards) < max(algorithm.min_group, 1) or len(set(rewards)) < 2


async def _rewards(
    store: Store, run: str, iteration: int, algorithm: Algorithm
) -> dict[GroupId, list[float]]:
    """Each group's rewards of usable members, in the order of the groups; branches are not looked at."""
    query = RolloutQuery(run=run, mode=Mode.TRAIN, iteration=iteration, variant="")
    failed: set[RolloutId] = set()
    if algorithm.failure_reward is not None:
        by_agent = structs.replace(
            query, states=(RolloutState.FAILED,), failure_kinds=tuple(AGENT_FAILURES)
        )
        failed = {rollout.id for rollout in await store.rollouts(by_agent)}
    rewards: dict[GroupId, list[float]] = {}
    for rollout in await store.rollouts(query):
        of_group = rewards.setdefault(rollout.spec.group_id, [])
        if rollout.state is RolloutState.SUCCEEDED and rollout.reward is not None:
            of_group.append(rollout.reward)
        elif rollout.id in failed and algorithm.failure_reward is not None:
            of_group.append(algorithm.failure_reward)
    return rewards


def _deleted(first: NewRollout, missing: int) -> str:
    return (
        f"{missing} {first.mode.value} rollouts of iteration {first.iteration} were deleted while they were"
        " waited for; give retention a longer age or a larger size than a run needs. The same command runs"
        " them again."
    )


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
            "When it is mended, the same command tries these rollouts again.",
        ]
    )
