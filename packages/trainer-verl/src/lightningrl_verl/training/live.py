"""Live rollouts: which of those that agents in production have ended an iteration trains on.

Invariants:
- What an iteration is given is decided once, in the store; a start after a crash finds it there.
- Every rewarded rollout is given to one iteration: to be trained, or skipped with a counted reason.
"""

from __future__ import annotations

import contextlib
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from msgspec.structs import replace

from lightningrl.errors import NotFound
from lightningrl.experience.trained_calls import lenses
from lightningrl.recipe import Recipe
from lightningrl.schema import (
    AGENT_FAILURES,
    GroupId,
    Mode,
    Progress,
    Rollout,
    RolloutId,
    RolloutState,
    Sampling,
)
from lightningrl.store.base import RolloutOrder, RolloutQuery, Store
from lightningrl.traces import read_attempts
from lightningrl_verl.training.metrics import Metrics
from lightningrl_verl.training.rows import unfit

_LOOK_SECONDS = 1.0
"""Longest time between two looks: feedback for a rollout that is complete wakes nobody."""

OTHER_SAMPLING = "not sampled as sampling.train says"


@dataclass(frozen=True)
class CollectedLive:
    """The live rollouts of one iteration."""

    skipped: tuple[GroupId, ...]
    """Groups of those that are not trained."""
    metrics: Metrics


async def collect_live(
    store: Store,
    recipe: Recipe,
    versions: Mapping[str, int],
    iteration: int,
    *,
    on_progress: Callable[[Progress], None],
) -> CollectedLive:
    """Wait for `live.min_rollouts` rollouts that can be trained, and give them to the iteration.

    The oldest come first, `live.max_rollouts` at most; those that can't be trained any more are given to
    it as well, to be skipped. Called again, after a crash too, it finds what the iteration was given.

    Args:
        store: where they are.
        recipe: with a section `live`.
        versions: alias -> version of the weights that the iteration trains.
        iteration: whose they shall be.
        on_progress: told of the live rollouts that no iteration was given.
    """
    query = RolloutQuery(run=recipe.name, mode=Mode.LIVE, iteration=iteration)
    while not (given := await store.rollouts(query)):
        chosen = await _choose(store, recipe, versions, on_progress)
        with contextlib.suppress(NotFound):  # one was deleted since it was looked at
            await store.give_live(recipe.name, iteration, chosen)
    reasons = await _reasons(store, recipe, versions, given)
    trained = [one for one in given if reasons[one.id] is None]
    left = await store.progress(recipe.name, Mode.LIVE, 0)
    return CollectedLive(
        tuple(one.spec.group_id for one in given if reasons[one.id] is not None),
        {
            "live/rollouts": len(trained),
            "live/reward": _mean([_reward(one, recipe) for one in trained]),
            "live/skipped_by_reason": dict(
                Counter(reason for reason in reasons.values() if reason is not None)
            ),
            "live/waiting": left.rewarded,
            "live/unrewarded": left.succeeded - left.rewarded,
            "live/failed": left.failed,
        },
    )


async def _choose(
    store: Store,
    recipe: Recipe,
    versions: Mapping[str, int],
    on_progress: Callable[[Progress], None],
) -> list[RolloutId]:
    """Those that are trained, then those that never will be; waits until there are enough of the former."""
    assert recipe.live is not None
    reasons: dict[RolloutId, str | None] = {}
    seen = -1
    while True:
        ended = await _ended(store, recipe)
        new = [one for one in ended if one.id not in reasons]
        with contextlib.suppress(NotFound):  # one was deleted since
            reasons |= await _reasons(store, recipe, versions, new)
        ended = [one for one in ended if one.id in reasons]
        fit = [one.id for one in ended if reasons[one.id] is None]
        if len(fit) >= recipe.live.min_rollouts:
            spent = [one.id for one in ended if reasons[one.id] is not None]
            return [*fit[: recipe.live.max_rollouts], *spent]
        progress = await store.progress(
            recipe.name, Mode.LIVE, 0, seen=seen, wait_seconds=_LOOK_SECONDS
        )
        on_progress(progress)
        seen = progress.ended


async def _ended(store: Store, recipe: Recipe) -> list[Rollout]:
    """Complete rollouts that have a reward, or earn one by failing, and no iteration; by their end."""
    assert recipe.algorithm is not None
    ended = RolloutQuery(run=recipe.name, mode=Mode.LIVE, iteration=0, order=RolloutOrder.ENDED)
    found = await store.rollouts(
        replace(ended, states=(RolloutState.SUCCEEDED,), min_reward=-sys.float_info.max)
    )
    if recipe.algorithm.failure_reward is not None:
        by_agent = tuple(AGENT_FAILURES)
        found += await store.rollouts(
            replace(ended, states=(RolloutState.FAILED,), failure_kinds=by_agent)
        )
    complete = [(one.ended_at, one.id, one) for one in found if one.complete and one.ended_at]
    return [one for _, _, one in sorted(complete, key=lambda place: place[:2])]


async def _reasons(
    store: Store, recipe: Recipe, versions: Mapping[str, int], rollouts: Sequence[Rollout]
) -> dict[RolloutId, str | None]:
    """Why each can't be trained on by weights of these versions. `None`: it can. Of a deleted one: nothing."""
    algorithm = recipe.algorithm
    assert algorithm is not None
    seen_by = lenses(recipe.policies, versions=versions, max_staleness=algorithm.max_staleness)
    found: dict[RolloutId, str | None] = {}
    for rollout, attempts in zip(rollouts, await read_attempts(store, rollouts), strict=True):
        if not attempts:
            continue
        if _form(rollout.spec.sampling) != _form(recipe.sampling.train):
            found[rollout.id] = OTHER_SAMPLING
        else:
            found[rollout.id] = unfit(attempts[-1].transitions, seen_by)
    return found


def _form(sampling: Sampling | None) -> Sampling:
    """What shapes the distribution that tokens are drawn from; the gateway sees to an agent's own wishes."""
    return replace(sampling or Sampling(), max_tokens=None, seed=None)


def _reward(rollout: Rollout, recipe: Recipe) -> float:
    if rollout.state is RolloutState.SUCCEEDED:
        assert rollout.reward is not None  # it was looked for by its reward
        return rollout.reward
    assert recipe.algorithm is not None
    assert recipe.algorithm.failure_reward is not None
    return recipe.algorithm.failure_reward


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
