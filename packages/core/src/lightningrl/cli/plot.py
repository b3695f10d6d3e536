"""`lightningrl plot RUN`: the curve of a run, also while it trains."""

from __future__ import annotations

from pathlib import Path

import click

from lightningrl.cli.stored_run import find_run_folder, load_run_recipe
from lightningrl.curve import draw_curve


@click.command()
@click.argument("run", metavar="RUN")
@click.option("--out", type=click.Path(path_type=Path), help="Instead of RUN/curve.png.")
def plot(run: str, out: Path | None) -> None:
    """Draw the reward curve of a run, or of a fine-tuning the loss.

    RUN is a run's folder or its name in runs/.
    """
    folder = find_run_folder(run)
    picture = out or folder / "curve.png"
    draw_curve(folder / "metrics.jsonl", picture, load_run_recipe(folder).recipe.name)
    click.echo(picture)
