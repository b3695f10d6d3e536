"""Which rollouts an iteration enqueues: pure functions of recipe, split and iteration.

Invariant: the same recipe gives the same rollouts with the same ids, so that a resumed run finds
those that were finished meanwhile.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lightningrl.recipe import Algorithm, Recipe
from lightningrl.schema import Mode, NewRollout, Sampling, group_id, rollout_id

Task = tuple[str, dict[str, Any]]
"""Task id and row."""


@dataclass(frozen=True)
class Splits:
    """The tasks."""

    train: Sequence[Task]
    val: Sequence[Task]
    """Empty: never validated."""
    test: Sequence[Task]
    """Empty: not scored at the end."""

    @property
    def scored(self) -> frozenset[str]:
        """Ids of the tasks that policies are scored on."""
        return frozenset(task_id for task_id, _ in (*self.val, *self.test))


GREEDY = "greedy"
SAMPLED = "sampled"


def tasks_of(
    tasks: Sequence[Task], algorithm: Algorithm, *, seed: int, iteration: int
) -> list[Task]:
    """The tasks of one training iteration (from 1 on).

    The tasks are shuffled anew for each pass over them, and dealt out in order. Where a split has
    fewer tasks than an iteration needs, each is still taken at most once per iteration. A run on live
    rollouts alone has none.
    """
    count = min(algorithm.tasks_per_iteration, len(tasks))
    if not count:
        return []
    per_pass = len(tasks) // count
    pass_number, place = divmod(iteration - 1, per_pass)
    order = list(range(len(tasks)))
    random.Random(f"{seed}/{pass_number}").shuffle(order)
    return [tasks[index] for index in order[place * count : (place + 1) * count]]


def training_rollouts(recipe: Recipe, tasks: Sequence[Task], iteration: int) -> list[NewRollout]:
    """The rollouts that iteration `iteration` collects."""
    algorithm = recipe.algorithm
    assert algorithm is not None
    chosen = tasks_of(tasks, algorithm, seed=recipe.seed, iteration=iteration)
    return _training(recipe, algorithm, chosen, iteration)


def further_rollouts(
    recipe: Recipe, tasks: Sequence[Task], iteration: int, start: int, stop: int
) -> list[NewRollout]:
    """Rollouts of further tasks `start` to `stop` of an iteration, in place of groups without signal.

    Further tasks are those that the iteration doesn't have anyway, in an order of its own, at most
    `algorithm.further_tasks`; where they run out there are fewer, or none.
    """
    algorithm = recipe.algorithm
    assert algorithm is not None
    chosen = tasks_of(tasks, algorithm, seed=recipe.seed, iteration=iteration)
    taken = {task_id for task_id, _ in chosen}
    others = [task for task in tasks if task[0] not in taken]
    random.Random(f"{recipe.seed}/further/{iteration}").shuffle(others)
    return _training(
        recipe, algorithm, others[start : min(stop, algorithm.further_tasks)], iteration
    )


def _training(
    recipe: Recipe, algorithm: Algorithm, tasks: Sequence[Task], iteration: int
) -> list[NewRollout]:
    return _rollouts(
        recipe, Mode.TRAIN, iteration, tasks, algorithm.group_size, "", recipe.sampling.train
    )


def scoring_rollouts(
    recipe: Recipe, tasks: Sequence[Task], mode: Mode, iteration: int, variant: str
) -> list[NewRollout]:
    """One rollout per task, `greedy` (the recipe's `sampling.val`) or `sampled` as in training."""
    sampling = recipe.sampling.val if variant == GREEDY else recipe.sampling.train
    return _rollouts(recipe, mode, iteration, tasks, 1, variant, sampling)


def _rollouts(
    recipe: Recipe,
    mode: Mode,
    iteration: int,
    tasks: Sequence[Task],
    members: int,
    variant: str,
    sampling: Sampling,
) -> list[NewRollout]:
    made: list[NewRollout] = []
    algorithm = recipe.algorithm if mode is Mode.TRAIN else None
    staleness = 0 if algorithm is None else algorithm.max_staleness
    for task_id, task in tasks:
        group = group_id(recipe.name, mode, iteration, task_id, variant)
        made += [
            NewRollout(
                id=rollout_id(group, member),
                run=recipe.name,
                mode=mode,
                iteration=iteration,
                task_id=task_id,
                group_id=group,
                member=member,
                task=task,
                variant=variant,
                sampling=sampling,
                timeout_seconds=recipe.runner.timeout_seconds,
                retry=recipe.runner.retry.policy,
                rewards=recipe.rewards,
                await_rewards=recipe.await_rewards,
                await_seconds=recipe.await_seconds,
                replay_staleness=staleness if recipe.runner.retry.replay else None,
            )
            for member in range(members)
        ]
    return made
