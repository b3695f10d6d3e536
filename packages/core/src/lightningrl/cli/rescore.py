"""`lightningrl rescore RUN`: the step rewards of stored rollouts, computed anew."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import click
from rich.table import Table

from lightningrl.cli.scored_run import recipe_of, scored_iteration
from lightningrl.cli.stored_run import StoredRun, open_runs
from lightningrl.cli.terminal import console
from lightningrl.errors import ConfigError
from lightningrl.experience.transition import Trace
from lightningrl.recipe import StepReward, load_recipe
from lightningrl.scoring import metric_names


@click.command()
@click.argument("run", metavar="RUN")
@click.option("--iteration", type=int, help="The latest unless given.")
@click.option(
    "--recipe",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Take `step_rewards` from this recipe, not from the run's.",
)
def rescore(run: str, iteration: int | None, recipe: Path | None) -> None:
    """Compute the step rewards of what a run was trained on anew.

    By the run's rules, or by another recipe's to try them out. Judges' answers are read from the run's
    folder, and asked for where they are missing. Nothing else is written: training computes the same.
    RUN is a run's folder, or its name in runs/.
    """
    rewards = load_recipe(recipe).recipe.step_rewards if recipe is not None else None
    console().print(asyncio.run(_picture(run, iteration, rewards)))


async def _picture(run: str, iteration: int | None, rewards: Sequence[StepReward] | None) -> Table:
    async with open_runs(run, None, None) as (found,):
        return await rescored(found, iteration, rewards)


async def rescored(
    run: StoredRun, iteration: int | None, rewards: Sequence[StepReward] | None
) -> Table:
    """A table with a row per rule, and one for all step rewards together.

    Raises:
        ConfigError: there are no step rewards to compute, or a rule is unknown.
        NotFound: the run took nothing for that iteration.
    """
    loaded, _ = recipe_of(run)
    chosen = loaded.recipe.step_rewards if rewards is None else rewards
    if not chosen:
        raise ConfigError(
            "the recipe has no step_rewards; name another one with --recipe, or add some"
        )
    iteration, scored = await scored_iteration(run, iteration, chosen)
    table = Table(title=f"{run.name}, iteration {iteration}")
    for heading in ("rule", "weight", "mean value", "model calls without a value"):
        table.add_column(heading)
    for name, one in zip(metric_names(chosen), chosen, strict=True):
        mean, missing = scored.metrics.get(name), scored.metrics[f"{name}_missing"]
        shown = "" if mean is None else f"{mean:.3f}"
        table.add_row(name, f"{one.weight:g}", shown, f"{missing:.0%}")
    traces = [trace for group in scored.groups for trace in group.traces]
    total = sum(map(_step_rewards, traces)) / max(len(traces), 1)
    table.add_row("per rollout, weighted, emitted ones included", "", f"{total:.3f}", "")
    return table


def _step_rewards(trace: Trace) -> float:
    return sum(one.reward or 0.0 for one in trace.calls)
