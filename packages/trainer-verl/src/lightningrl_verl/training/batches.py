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


GREEDY = "greedy"
SAMPLED = "sampled"


def tasks_of(
    tasks: Sequence[Task], algorithm: Algorithm, *, seed: int, iteration: int
) -> list[Task]:
    """The tasks of one training iteration (from 1 on).

    The tasks are shuffled anew for each pass over them, and dealt out in order. Where a split has
    fewer tasks than an iteration needs, each is still taken at most once per iteration.
    """
    count = min(algorithm.tasks_per_iteration, len(tasks))
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
    return _rollouts(
        recipe, Mode.TRAIN, iteration, chosen, algorithm.group_size, "", recipe.sampling.train
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
                retry=recipe.runner.retry,
            )
            for member in range(members)
        ]
    return made
