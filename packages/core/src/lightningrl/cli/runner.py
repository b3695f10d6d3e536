"""`lightningrl runner RECIPE --server URL`: processes that run agents."""

from __future__ import annotations

from pathlib import Path

import click

from lightningrl.recipe import load_recipe
from lightningrl.runner.supervisor import run_workers
from lightningrl.settings import client_key


@click.command()
@click.argument("recipe", type=click.Path(path_type=Path))
@click.argument("overrides", nargs=-1, metavar="[key=value]...")
@click.option(
    "--server",
    required=True,
    metavar="URL",
    envvar="LIGHTNINGRL_SERVER",
    help="Of `lightningrl serve`.",
)
@click.option(
    "--processes",
    type=click.IntRange(min=1),
    envvar="LIGHTNINGRL_PROCESSES",
    help="Instead of the recipe's.",
)
@click.option(
    "--concurrency",
    type=click.IntRange(min=1),
    envvar="LIGHTNINGRL_CONCURRENCY",
    help="Attempts at a time in each.",
)
@click.option(
    "--log-level",
    default="warning",
    show_default=True,
    envvar="LIGHTNINGRL_LOG_LEVEL",
    help="Of the processes.",
)
@click.option("--key", default=client_key, hidden=True, help="The server's key.")
@click.option(
    "--grace-seconds",
    type=float,
    default=20.0,
    show_default=True,
    envvar="LIGHTNINGRL_GRACE_SECONDS",
    help="Time to finish.",
)
@click.option("--parent-fd", type=int, hidden=True, help="End when this pipe's other end closes.")
def runner(
    recipe: Path,
    overrides: tuple[str, ...],
    server: str,
    processes: int | None,
    concurrency: int | None,
    log_level: str,
    key: str | None,
    grace_seconds: float,
    parent_fd: int | None,
) -> None:
    """Run agents for a server.

    Leases rollouts and runs the agent of RECIPE on them, until SIGTERM or Ctrl-C. What runs is finished or given back first. The server's key is read from LIGHTNINGRL_KEY.
    """
    loaded = load_recipe(recipe, overrides)
    settings = loaded.recipe.runner
    status = run_workers(
        recipe,
        server,
        processes=processes or settings.processes,
        concurrency=concurrency or settings.concurrency,
        key=key,
        python=loaded.agents_python(),
        overrides=overrides,
        log_level=log_level,
        grace_seconds=grace_seconds,
        parent_fd=parent_fd,
    )
    # A worker that can't use the recipe has said why, and ended with a status of its own.
    raise SystemExit(2 if status else 0)
