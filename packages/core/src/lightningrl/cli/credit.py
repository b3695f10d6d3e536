"""`lightningrl credit RUN --with A,B`: what several methods would have given stored rollouts."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

import click
import numpy as np
from rich.console import Group as Lines
from rich.table import Table

from lightningrl.cli.scored_run import credits_of
from lightningrl.cli.stored_run import StoredRun, open_runs
from lightningrl.cli.terminal import console
from lightningrl.credit import Credit
from lightningrl.credit.columns import is_decision
from lightningrl.errors import ConfigError
from lightningrl.experience.transition import Group

_SHOWN = ("coverage", "fallback")
"""Metrics of methods that stand in the table."""


@click.command()
@click.argument("run", metavar="RUN")
@click.option(
    "--with", "names", required=True, metavar="A,B", help="Methods, as a recipe names them."
)
@click.option("--iteration", type=int, help="The latest unless given.")
@click.option("--rollout", metavar="ID", help="Show each step of this rollout, not the first one.")
def credit(run: str, names: str, iteration: int | None, rollout: str | None) -> None:
    """Compare credit assigners on what a run was trained on.

    Nothing is trained or written. RUN is a run's folder, or its name in runs/. The run's own method stands
    first, with its parameters; the others have their defaults.
    """
    console().print(asyncio.run(_picture(run, names.split(","), iteration, rollout)))


async def _picture(
    run: str, names: Sequence[str], iteration: int | None, rollout: str | None
) -> Lines:
    async with open_runs(run, None, None) as (found,):
        return await compare(found, names, iteration, rollout)


async def compare(
    run: StoredRun, names: Sequence[str], iteration: int | None, rollout: str | None
) -> Lines:
    """A table of the methods, and one of a rollout's steps.

    Raises:
        ConfigError: there is no such method.
        NotFound: the run took nothing for that iteration.
    """
    given = await credits_of(run, names, iteration)
    title = f"{run.name}, iteration {given.iteration}"
    return Lines(
        _summary(title, given.groups, given.found, given.own),
        _steps(given.groups, given.found, rollout),
    )


def _summary(
    title: str, groups: Sequence[Group], found: Mapping[str, Credit | str], own: str
) -> Table:
    table = Table(title=title)
    headings = ("method", "mean |credit|", "decisions at 0", f"correlation with {own}", *_SHOWN, "")
    for heading in headings:
        table.add_column(heading)
    reference = found[own]
    for name, credit in found.items():
        if isinstance(credit, str):
            table.add_row(name, *[""] * (len(headings) - 2), credit)
            continue
        values = _decided(groups, credit)
        same = (
            "" if isinstance(reference, str) else _correlation(values, _decided(groups, reference))
        )
        shown = [f"{credit.metrics[key]:.2f}" if key in credit.metrics else "" for key in _SHOWN]
        size = f"{np.abs(values).mean():.3f}" if len(values) else ""
        zero = f"{(values == 0).mean():.0%}" if len(values) else ""
        table.add_row(name, size, zero, same, *shown, credit.unfit or "")
    return table


def _decided(groups: Sequence[Group], credit: Credit) -> np.ndarray:
    return np.array(
        [
            value
            for group, credit_G in zip(groups, credit, strict=True)
            for trace, credit_T in zip(group.traces, credit_G, strict=True)
            for one, value in zip(trace.transitions, credit_T, strict=True)
            if is_decision(one)
        ]
    )


def _correlation(values: np.ndarray, reference: np.ndarray) -> str:
    if len(values) < 2 or not values.std() or not reference.std():
        return ""
    return f"{np.corrcoef(values, reference)[0, 1]:.2f}"


def _steps(
    groups: Sequence[Group], found: Mapping[str, Credit | str], rollout: str | None
) -> Table:
    """The decisions of one rollout with what each method gives them.

    Raises:
        ConfigError: the iteration has no such rollout.
    """
    places = [(g, i) for g, group in enumerate(groups) for i in range(len(group.traces))]
    ids = {groups[g].traces[i].rollout.id: (g, i) for g, i in places}
    if rollout is not None and rollout not in ids:
        raise ConfigError(
            f"the iteration took no rollout {rollout!r}; `lightningrl show` lists them"
        )
    g, i = next((place for ident, place in ids.items() if ident == rollout), places[0])
    trace = groups[g].traces[i]
    given = {name: credit for name, credit in found.items() if not isinstance(credit, str)}
    table = Table(title=f"rollout {trace.rollout.id}, reward {trace.reward:g}")
    for heading in ("step", "agent", "reward", *given):
        table.add_column(heading)
    for place, one in enumerate(trace.transitions):
        if is_decision(one):
            reward = "" if one.reward is None else f"{one.reward:g}"
            numbers = [f"{credit[g][i][place]:+.3f}" for credit in given.values()]
            table.add_row(str(place), one.agent_path or one.name, reward, *numbers)
    return table
