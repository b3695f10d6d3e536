"""`lightningrl show RUN`: what the agent did in its latest rollouts, step by step."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import click
from rich.console import Group
from rich.text import Text

from lightningrl.cli.run_starts import read_starts
from lightningrl.cli.stored_run import StoredRun, open_runs, server_options
from lightningrl.cli.terminal import console
from lightningrl.cli.tree import SHORT, rollout_tree
from lightningrl.credit import StatefulAssigner, assign, find_assigner
from lightningrl.errors import NotFound
from lightningrl.schema import Mode, Rollout, RolloutId
from lightningrl.scoring import Scorer
from lightningrl.store import RolloutQuery
from lightningrl.traces import late_rewards, read_attempts, read_ledger


@click.command()
@click.argument("run", metavar="RUN")
@click.option("--rollout", metavar="ID", help="This rollout alone.")
@click.option("--iteration", type=int, help="Of this iteration.")
@click.option("--mode", type=click.Choice([mode.value for mode in Mode]), help="Of this mode.")
@click.option("--last", type=click.IntRange(min=1), default=3, show_default=True, help="How many.")
@click.option("--full", is_flag=True, help="Don't shorten texts.")
@server_options
def show(
    run: str,
    rollout: str | None,
    iteration: int | None,
    mode: str | None,
    last: int,
    full: bool,
    server: str | None,
    key: str | None,
) -> None:
    """Show rollouts step by step.

    The latest ones, also while the run trains. RUN is a run's folder, its name in runs/, or with --server its name.
    """
    query = RolloutQuery(
        ids=(RolloutId(rollout),) if rollout is not None else (),
        iteration=iteration,
        mode=Mode(mode) if mode is not None else None,
        descending=True,
        limit=last,
    )
    picture = asyncio.run(_picture(run, server, key, query, None if full else SHORT))
    console().print(picture)


async def _picture(
    run: str, server: str | None, key: str | None, query: RolloutQuery, limit: int | None
) -> Group:
    async with open_runs(run, server, key) as (found,):
        return await run_picture(found, query, limit=limit)


async def run_picture(run: StoredRun, query: RolloutQuery, *, limit: int | None = SHORT) -> Group:
    """The rollouts of a run that match, oldest first, below a line of counts.

    Raises:
        NotFound: none matches.
    """
    narrowed = RolloutQuery(
        run=run.name,
        ids=query.ids,
        iteration=query.iteration,
        mode=query.mode,
        descending=True,
        limit=query.limit,
    )
    rollouts = (await run.store.rollouts(narrowed))[::-1]
    summary = await run.store.summary(run.name)
    counts = ", ".join(f"{count} {state}" for state, count in summary.rollouts.items() if count)
    if not rollouts:
        raise NotFound(f"run {run.name!r} has no such rollout; it has {counts or 'none at all'}")
    credit = await credit_of(run, rollouts)
    records = await read_attempts(run.store, rollouts)
    entries = await run.store.ledger(run.name)
    trees = [
        rollout_tree(
            rollout,
            attempts,
            credit.get(rollout.id),
            late=[reward for one in attempts for reward in late_rewards(entries, one)],
            limit=limit,
        )
        for rollout, attempts in zip(rollouts, records, strict=True)
    ]
    starts = [] if run.folder is None else read_starts(run.folder)
    ended = f"; {starts[-1].said}" if starts else ""
    return Group(Text(f"{run.name}: {counts}{ended}", "dim"), *trees)


async def credit_of(run: StoredRun, rollouts: Sequence[Rollout]) -> dict[RolloutId, list[float]]:
    """Per rollout that its iteration took, the credit of its transitions, computed anew.

    Empty where the recipe isn't known or names no credit, and for a method with a state or a critic, whose
    values are not among the events.
    """
    loaded = run.recipe
    if loaded is None or loaded.recipe.algorithm is None:
        return {}
    algorithm = loaded.recipe.algorithm
    assigner = find_assigner(algorithm.credit, algorithm.credit_args, folder=loaded.folder)
    if isinstance(assigner, StatefulAssigner):
        return {}
    scorer = Scorer(loaded.recipe.step_rewards, run_folder=loaded.run_folder, folder=loaded.folder)
    found: dict[RolloutId, list[float]] = {}
    trained = (one for one in rollouts if one.spec.mode is Mode.TRAIN)
    for iteration in sorted({one.spec.iteration for one in trained}):
        taken = await read_ledger(run.store, run.name, iteration)
        groups = (await scorer.score(taken)).groups
        credit = assign(assigner, groups, algorithm.credit_args)
        for group, credit_G in zip(groups, credit, strict=True):
            for trace, credit_T in zip(group.traces, credit_G, strict=True):
                found[trace.rollout.id] = credit_T
    return found
