"""The groups that a stored run's iteration was trained on, with step rewards and credit computed anew."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lightningrl.cli.stored_run import StoredRun
from lightningrl.credit import Credit, StatefulAssigner, assign, find_assigner
from lightningrl.errors import ConfigError, NotFound, RunError
from lightningrl.experience.train_when import load_train_when
from lightningrl.experience.trained_calls import as_trained, lenses
from lightningrl.experience.transition import Group
from lightningrl.recipe import Algorithm, LoadedRecipe, StepReward
from lightningrl.scoring import Scored, Scorer
from lightningrl.traces import read_ledger


def recipe_of(run: StoredRun) -> tuple[LoadedRecipe, Algorithm]:
    """A run's recipe and the part of it that assigns credit.

    Raises:
        ConfigError: only a server is known, or the recipe trains nothing.
    """
    if run.recipe is None or run.recipe.recipe.algorithm is None:
        raise ConfigError(
            f"the recipe of run {run.name!r} is not known here, or trains nothing; name the folder of"
            " a training run"
        )
    return run.recipe, run.recipe.recipe.algorithm


async def scored_iteration(
    run: StoredRun, iteration: int | None, rewards: Sequence[StepReward]
) -> tuple[int, Scored]:
    """An iteration's groups with `rewards` added to their steps.

    Args:
        run: of a known recipe.
        iteration: `None` is the latest one that took anything.
        rewards: rules and judges.

    Raises:
        NotFound: nothing was taken.
    """
    loaded, _ = recipe_of(run)
    taken = {entry.iteration for entry in await run.store.ledger(run.name) if entry.members}
    if not taken or iteration not in {None, *taken}:
        listing = ", ".join(map(str, sorted(taken))) or "none"
        raise NotFound(
            f"run {run.name!r} took no rollouts for iteration {iteration}; it took {listing}"
        )
    chosen = max(taken) if iteration is None else iteration
    groups = await read_ledger(run.store, run.name, chosen)
    scorer = Scorer(rewards, run_folder=loaded.run_folder, folder=loaded.folder)
    return chosen, await scorer.score(groups)


@dataclass(frozen=True)
class Compared:
    """What several methods give one iteration."""

    iteration: int
    groups: Sequence[Group]
    found: Mapping[str, Credit | str]
    """Method -> its credit, aligned with the groups, or why there is none; the run's own first."""
    own: str
    """The run's method."""


async def credits_of(
    run: StoredRun,
    names: Sequence[str],
    iteration: int | None,
    *,
    only: Collection[str] | None = None,
) -> Compared:
    """What the run's method and others give what an iteration was trained on.

    Args:
        run: of a known recipe.
        names: of methods, as a recipe names them; they have their defaults, the run's own has its parameters.
        iteration: `None` is the latest one that took anything.
        only: methods that may be loaded, for whoever must not run a recipe's own code. `None`: any.

    Raises:
        ConfigError: there is no such method.
        NotFound: the run took nothing for that iteration.
    """
    loaded, algorithm = recipe_of(run)
    chosen, scored = await scored_iteration(run, iteration, loaded.recipe.step_rewards)
    policies = loaded.recipe.policies
    if code := only is None:
        load_train_when(policies, loaded.folder)
    looks = lenses(policies, code=code)
    groups = as_trained(scored.groups, looks) if policies else scored.groups
    methods: dict[str, Mapping[str, Any]] = {algorithm.credit: algorithm.credit_args}
    methods |= {name: {} for name in names if name not in methods}
    found: dict[str, Credit | str] = {}
    for name, params in methods.items():
        if only is not None and name not in only:
            found[name] = (
                "is code of the recipe's, which is not run here; `lightningrl credit` runs it"
            )
            continue
        assigner = find_assigner(name, params, folder=loaded.folder)
        if isinstance(assigner, StatefulAssigner):
            found[name] = "has a state or a critic, which is not stored"
            continue
        try:
            found[name] = assign(assigner, groups, params)
        except RunError as error:
            found[name] = str(error)
    return Compared(chosen, groups, found, algorithm.credit)
