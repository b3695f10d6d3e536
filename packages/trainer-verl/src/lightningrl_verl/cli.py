"""`lightningrl train` and `lightningrl tiny`."""

from __future__ import annotations

import asyncio
from pathlib import Path

import click

from lightningrl.cli import terminal
from lightningrl.recipe import load_recipe
from lightningrl_verl.machine.environment import prepare_process


@click.command()
@click.argument("recipe", type=click.Path(path_type=Path))
@click.argument("overrides", nargs=-1, metavar="[key=value]...")
def train(recipe: Path, overrides: tuple[str, ...]) -> None:
    """Train the policy behind an agent, as RECIPE says; resumes by itself.

    Each key=value changes one key of the recipe, such as optimiser.learning_rate=3e-4.
    """
    from lightningrl_verl.start.folder import RunFolder
    from lightningrl_verl.start.preflight import check, check_packages

    plan = check(load_recipe(recipe, overrides))
    RunFolder(plan.loaded.run_folder).refuse_another(plan.loaded)
    check_packages(plan.recipe)
    prepare_process()
    # Only now: torch and verl take seconds to load.
    from lightningrl_verl.start.run import train_run

    raise SystemExit(asyncio.run(train_run(plan, overrides)))


@click.command()
@click.argument("recipe", type=click.Path(path_type=Path))
@click.argument("overrides", nargs=-1, metavar="[key=value]...")
@click.option("--out", type=click.Path(path_type=Path), help="Copy the model to this new folder.")
@click.option("--policy", help="Which one, where the recipe has several.")
def tiny(recipe: Path, overrides: tuple[str, ...], out: Path | None, policy: str | None) -> None:
    """Build the tiny policy of RECIPE, or find it in the cache."""
    prepare_process()
    from lightningrl_verl.start.models import build_policy, copy_policy

    loaded = load_recipe(recipe, overrides)
    console = terminal.console()
    model = asyncio.run(build_policy(loaded, policy, console))
    if out is not None:
        copy_policy(model, out)
        console.print(f"Copied to {out}")
