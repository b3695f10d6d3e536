"""`lightningrl retry` and `lightningrl delete`: what an operator does to the rollouts of a run."""

from __future__ import annotations

import asyncio

import click

from lightningrl.checks.evidence import counted
from lightningrl.cli.copies import check_copies, delete_copies, kept_copies
from lightningrl.cli.retention import MODES, retention
from lightningrl.cli.stored_run import open_to_change, server_options
from lightningrl.errors import ConfigError
from lightningrl.schema import Mode, RolloutId, RolloutState
from lightningrl.store import RolloutQuery
from lightningrl.store.base import Retention


@click.command()
@click.argument("run", metavar="RUN")
@click.option("--rollout", "ids", metavar="ID", multiple=True, help="These rollouts alone.")
@click.option("--iteration", type=int, help="Of this iteration.")
@click.option("--mode", type=MODES, help="Of this mode.")
@server_options
def retry(
    run: str,
    ids: tuple[str, ...],
    iteration: int | None,
    mode: str | None,
    server: str | None,
    key: str | None,
) -> None:
    """Queue failed rollouts again.

    Each has all its tries again; those that an iteration was trained on are refused. RUN is a run's folder, its name in runs/, or with --server its name.
    """
    query = RolloutQuery(
        states=(RolloutState.FAILED,),
        ids=tuple(RolloutId(one) for one in ids),
        iteration=iteration,
        mode=None if mode is None else Mode(mode),
    )
    count = asyncio.run(_retry(run, query, server, key))
    click.echo(f"queued {counted(count, 'rollout')} of {run} again")


async def _retry(run: str, query: RolloutQuery, server: str | None, key: str | None) -> int:
    async with open_to_change(run, server, key) as found:
        narrowed = RolloutQuery(
            run=found.name,
            states=query.states,
            ids=query.ids,
            iteration=query.iteration,
            mode=query.mode,
        )
        return await found.store.retry([one.id for one in await found.store.rollouts(narrowed)])


@click.command()
@click.argument("run", metavar="RUN")
@click.option("--rollout", "ids", metavar="ID", multiple=True, help="These rollouts alone.")
@click.option("--older-than", metavar="AGE", help="What ended longer ago, of every run: 90m, 7d.")
@click.option(
    "--down-to", metavar="BYTES", type=click.IntRange(min=0), help="Oldest first, to this size."
)
@click.option("--mode", "modes", type=MODES, multiple=True, help="By age and size: of these modes.")
@click.option("--yes", is_flag=True, help="Don't ask.")
@server_options
def delete(
    run: str,
    ids: tuple[str, ...],
    older_than: str | None,
    down_to: int | None,
    modes: tuple[str, ...],
    yes: bool,
    server: str | None,
    key: str | None,
) -> None:
    """Delete a run's records for good, some rollouts, or what is old.

    Refused for what runs or is being trained on. --older-than and --down-to look at all of the store that RUN is in, and keep what no iteration has committed. RUN is a run's folder, its name in runs/, or with --server its name. Of a folder, what lessons and judges' answers have of them goes too; what else may tell of them stays and is listed.
    """
    rule = retention(older_than, down_to, modes)
    if ids and rule is not None:
        raise ConfigError(
            "--rollout names rollouts, --older-than and --down-to find them; give one"
        )
    if not yes:
        click.confirm(f"delete records of {run} for good?", abort=True)
    for line in asyncio.run(_delete(run, [RolloutId(one) for one in ids], rule, server, key)):
        click.echo(line)


async def _delete(
    run: str, ids: list[RolloutId], rule: Retention | None, server: str | None, key: str | None
) -> list[str]:
    async with open_to_change(run, server, key) as found:
        if found.folder is not None:
            check_copies(found.folder)
        if rule is not None:
            count = await found.store.retain(rule)
        elif ids:
            count = await found.store.delete_rollouts(ids)
        else:
            count = await found.store.delete_run(found.name)
        said = [f"deleted {counted(count, 'rollout')}"]
        if found.folder is None:
            return [*said, *_ELSEWHERE]
        gone = await delete_copies(found.folder, found.store)
        if gone.lesson_rows or gone.answers:
            said.append(
                f"and of them {counted(gone.lesson_rows, 'row')} of lessons, {counted(gone.answers, 'answer')} of judges"
            )
        left = [
            *kept_copies(found.folder),
            "files and models that were exported or trained from it",
        ]
        return [*said, "not reached, and may still tell of them:", *(f"  {one}" for one in left)]


_ELSEWHERE = (
    "not reached, and may still tell of them:",
    "  the run's folder: end what serves its store, then `lightningrl delete` the folder",
    "  files and models that were exported or trained from it",
)
