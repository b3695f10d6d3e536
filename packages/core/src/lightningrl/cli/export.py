"""`lightningrl export RUN`: a checkpoint as a Hugging Face folder with a model card."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import click

from lightningrl.cli.model_card import CardFacts, model_card
from lightningrl.cli.stored_run import find_run_folder, load_run_recipe, read_origin
from lightningrl.errors import ConfigError
from lightningrl.metrics import read_metrics

_CHECKPOINT = re.compile(r"iteration-(\d+)")


@click.command()
@click.argument("run", metavar="RUN")
@click.option("--iteration", type=int, help="Instead of the newest checkpoint.")
@click.option("--out", type=click.Path(path_type=Path), help="Instead of RUN/export.")
@click.option("--force", is_flag=True, help="Write into a folder that is not empty.")
def export(run: str, iteration: int | None, out: Path | None, force: bool) -> None:
    """Export a trained model.

    Writes a checkpoint as a Hugging Face folder with a model card. RUN is a run's folder or its name in runs/.
    """
    folder = find_run_folder(run)
    target = out or folder / "export"
    exported = export_checkpoint(folder, target, iteration=iteration, force=force)
    click.echo(f"exported iteration {exported} to {target}")


def export_checkpoint(
    folder: Path, target: Path, *, iteration: int | None = None, force: bool = False
) -> int:
    """Copy a checkpoint's model to `target` and write its card; return the checkpoint's iteration.

    Args:
        folder: the run's.
        target: made where it isn't there.
        iteration: the checkpoint's. `None`: the newest.
        force: write into a folder that isn't empty: files of the same name are replaced, others stay.

    Raises:
        ConfigError: there is no such checkpoint, or `target` is not empty.
        RunError: the run's metrics can't be read.
    """
    found, model = _find_model(folder, iteration)
    if target.exists() and (not target.is_dir() or any(target.iterdir())) and not force:
        raise ConfigError(
            f"{str(target)!r} is there and not empty; choose another --out, or --force to write into"
            " it"
        )
    # Read before anything is written: a run that can't be described is not exported by half.
    curve = folder / "curve.png"
    tiny = model / "tiny_policy.json"
    facts = CardFacts(
        recipe=load_run_recipe(folder).recipe,
        iteration=found,
        metrics=read_metrics(folder / "metrics.jsonl"),
        origin=read_origin(folder),
        tiny_record=tiny.read_text(encoding="utf-8") if tiny.is_file() else None,
        has_curve=curve.is_file(),
    )
    shutil.copytree(model, target, dirs_exist_ok=True)
    if facts.has_curve:
        shutil.copyfile(curve, target / "curve.png")
    (target / "README.md").write_text(model_card(facts), encoding="utf-8")
    return found


def _find_model(folder: Path, iteration: int | None) -> tuple[int, Path]:
    """Iteration and Hugging Face folder of the checkpoint that is asked for."""
    models: dict[int, Path] = {}
    for path in (folder / "checkpoints").glob("iteration-*/huggingface"):
        name = _CHECKPOINT.fullmatch(path.parent.name)
        if name is not None:
            models[int(name.group(1))] = path
    if not models:
        raise ConfigError(
            f"run {str(folder)!r} has no checkpoint yet; the trainer writes one at the end of each"
            " iteration"
        )
    wanted = max(models) if iteration is None else iteration
    if wanted not in models:
        kept = ", ".join(str(one) for one in sorted(models))
        raise ConfigError(
            f"run {str(folder)!r} has no checkpoint of iteration {wanted}; it keeps those of {kept}"
            " (trainer.keep_checkpoints)"
        )
    return wanted, models[wanted]
