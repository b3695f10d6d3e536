"""The groups that a stored run's iteration was trained on, with their step rewards computed anew."""

from __future__ import annotations

from collections.abc import Sequence

from lightningrl.cli.stored_run import StoredRun
from lightningrl.errors import ConfigError, NotFound
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
