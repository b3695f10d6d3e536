"""`lightningrl export RUN`: a checkpoint as a Hugging Face folder with a model card, or the run's records."""

from __future__ import annotations

import asyncio
import re
import shutil
from pathlib import Path

import click

from lightningrl.archive import export_run
from lightningrl.archive.atif import export_trajectories
from lightningrl.archive.tasks import export_tasks
from lightningrl.checks.evidence import counted
from lightningrl.cli.model_card import CardFacts, model_card
from lightningrl.cli.stored_run import (
    find_run_folder,
    load_run_recipe,
    open_runs,
    read_origin,
    server_options,
)
from lightningrl.conversation.rewriting.told import told
from lightningrl.deployment import SERVING, read_serving, serving_path, write_serving
from lightningrl.errors import ConfigError
from lightningrl.metrics import read_metrics
from lightningrl.recipe import Recipe
from lightningrl.user_input.names import suggest

_CHECKPOINT = re.compile(r"iteration-(\d+)")


@click.command()
@click.argument("run", metavar="RUN")
@click.option("--iteration", type=int, help="Instead of the newest checkpoint.")
@click.option("--policy", help="Which one, where the run trained several.")
@click.option("--out", type=click.Path(path_type=Path), help="Instead of RUN/export.")
@click.option("--force", is_flag=True, help="Write into a folder that is not empty.")
@click.option(
    "--to",
    type=click.Path(path_type=Path),
    help="Instead of the model the records, as FILE.jsonl or FILE.parquet.",
)
@click.option(
    "--format",
    "form",
    type=click.Choice(["records", "atif"]),
    default="records",
    show_default=True,
    help="Of --to: all records, or a trajectory for each rollout in the Agent Trajectory Interchange Format.",
)
@click.option(
    "--tasks",
    type=click.Path(path_type=Path),
    help="Instead of the model the tasks, as FILE.jsonl.",
)
@click.option(
    "--with-rollouts",
    is_flag=True,
    help="To each task add its rollouts: reward, output, and what models were asked and answered.",
)
@server_options
def export(
    run: str,
    iteration: int | None,
    policy: str | None,
    out: Path | None,
    force: bool,
    to: Path | None,
    form: str,
    tasks: Path | None,
    with_rollouts: bool,
    server: str | None,
    key: str | None,
) -> None:
    """Export a trained model, or a run's records.

    Writes a checkpoint as a Hugging Face folder with a model card. With --to, all that the store holds of the run instead: rollouts, attempts, events, rewards, ledger; `lightningrl import` reads it. FILE.parquet is for analysis and needs lightningrl[parquet]. With --format atif, FILE.jsonl gets a trajectory a line instead, with token ids and log-probs, for other tools. With --tasks, its tasks, ready to be a recipe's data. RUN is a run's folder or its name in runs/; with --server, which has records alone, its name.
    """
    if with_rollouts and tasks is None:
        raise ConfigError("--with-rollouts is about --tasks; give that too, or leave it out")
    if form == "atif" and (to is None or to.suffix != ".jsonl"):
        raise ConfigError("--format atif is about --to; give it a FILE.jsonl")
    if to is None and tasks is None:
        if server is not None:
            raise ConfigError("a server holds records, no models; give --to or --tasks")
        folder = find_run_folder(run)
        target = out or folder / "export"
        exported = export_checkpoint(
            folder, target, iteration=iteration, policy=policy, force=force
        )
        click.echo(f"exported iteration {exported} to {target}")
        for line in _lacking(target):
            click.echo(line)
        return
    if (iteration, policy, out) != (None, None, None) or force:
        raise ConfigError(
            "--iteration, --policy, --out and --force are about models; leave them out"
        )
    if tasks is not None and tasks.suffix != ".jsonl":
        raise ConfigError(f"{str(tasks)!r} must end in .jsonl, which is what is written")
    for line in asyncio.run(_export_records(run, to, form, tasks, with_rollouts, server, key)):
        click.echo(line)


def _lacking(target: Path) -> list[str]:
    """What a bare engine that serves the export would not do, and training did."""
    serving = read_serving(target / SERVING)
    said = told(serving.rules) if serving is not None else []
    if not said:
        return []
    return [
        f"While it was trained its requests were rewritten ({SERVING}), which an engine alone does not do:",
        *(f"  {one}" for one in said),
        f"With them, before any engine: lightningrl serve --policy {target} --engine http://127.0.0.1:8000/v1",
    ]


async def _export_records(
    run: str,
    to: Path | None,
    form: str,
    tasks: Path | None,
    with_rollouts: bool,
    server: str | None,
    key: str | None,
) -> list[str]:
    done: list[str] = []
    async with open_runs(run, server, key) as (found,):
        if to is not None:
            write = export_trajectories if form == "atif" else export_run
            count = await write(found.store, found.name, to)
            which = " that called a model" if form == "atif" else ""
            done.append(f"exported {counted(count, 'rollout')}{which} to {to}")
        if tasks is not None:
            count = await export_tasks(found.store, found.name, tasks, with_rollouts=with_rollouts)
            done.append(f"exported {counted(count, 'task')} to {tasks}")
    return done


def export_checkpoint(
    folder: Path,
    target: Path,
    *,
    iteration: int | None = None,
    policy: str | None = None,
    force: bool = False,
) -> int:
    """Copy a checkpoint's model to `target` and write its card; return the checkpoint's iteration.

    Args:
        folder: the run's.
        target: made where it isn't there.
        iteration: the checkpoint's. `None`: the newest.
        policy: the trained policy's alias. `None`: the only one's.
        force: write into a folder that isn't empty: files of the same name are replaced, others stay.

    Raises:
        ConfigError: there is no such checkpoint or policy, or `target` is not empty.
        RunError: the run's metrics can't be read.
    """
    recipe = load_run_recipe(folder).recipe
    found, alias, model = find_checkpoint(folder, iteration=iteration, policy=policy)
    if target.exists() and (not target.is_dir() or any(target.iterdir())) and not force:
        raise ConfigError(
            f"{str(target)!r} is there and not empty; choose another --out, or --force to write into"
            " it"
        )
    # Read before anything is written: a run that can't be described is not exported by half.
    curve = folder / "curve.png"
    serving = read_serving(serving_path(folder, alias))
    rewritten = told(serving.rules) if serving is not None else []
    facts = CardFacts(
        recipe=recipe,
        policy=alias,
        iteration=found,
        metrics=read_metrics(folder / "metrics.jsonl"),
        origin=read_origin(folder),
        tiny_record=_record(model / "tiny_policy.json"),
        base_record=_record(model / "pretrained_model.json"),
        warm_start_record=_record(model / "warm_start.json"),
        has_curve=curve.is_file(),
        rewritten=rewritten,
    )
    shutil.copytree(model, target, dirs_exist_ok=True)
    if facts.has_curve:
        shutil.copyfile(curve, target / "curve.png")
    if serving is not None:
        write_serving(target / SERVING, serving)
    (target / "README.md").write_text(model_card(facts), encoding="utf-8")
    return found


def find_checkpoint(
    folder: Path, *, iteration: int | None, policy: str | None
) -> tuple[int, str, Path]:
    """Find what a run has trained: iteration, alias, and the checkpoint's Hugging Face folder.

    Args:
        folder: the run's.
        iteration: the checkpoint's. `None`: the newest.
        policy: the trained policy's alias. `None`: the only one's.

    Raises:
        ConfigError: there is no such checkpoint or policy.
    """
    recipe = load_run_recipe(folder).recipe
    alias = _trained(recipe, policy)
    inside = alias if len(_all_trained(recipe)) > 1 else "."
    return _find_model(folder, iteration, alias, inside)


def _record(file: Path) -> str | None:
    """A file by which a model tells where it came from. `None`: it isn't there."""
    return file.read_text(encoding="utf-8") if file.is_file() else None


def _all_trained(recipe: Recipe) -> list[str]:
    return [alias for alias, one in recipe.policies.items() if one.trainable]


def _trained(recipe: Recipe, policy: str | None) -> str:
    """The alias of the policy to export."""
    trained = _all_trained(recipe)
    if policy is not None and policy not in trained:
        raise ConfigError(
            f"the run trained no policy {policy!r}, but {trained}.{suggest(policy, trained)}"
        )
    if policy is None and len(trained) > 1:
        raise ConfigError(f"the run trained several policies, {trained}; name one by --policy")
    return policy or (trained[0] if trained else "policy")


def _find_model(
    folder: Path, iteration: int | None, alias: str, inside: str
) -> tuple[int, str, Path]:
    """See `find_checkpoint`; `inside` is the policy's place in a checkpoint."""
    models: dict[int, Path] = {}
    for path in (folder / "checkpoints").iterdir() if (folder / "checkpoints").is_dir() else ():
        name = _CHECKPOINT.fullmatch(path.name)
        model = path / inside / "huggingface"
        if name is not None and model.is_dir():
            models[int(name.group(1))] = model
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
    return wanted, alias, models[wanted]
