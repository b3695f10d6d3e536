"""`lightningrl try RECIPE --policy URL`: is my agent wired up? No trainer and no GPU needed."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.text import Text

from lightningrl.checks import Evidence, Finding, Place, examine
from lightningrl.checks.evidence import counted
from lightningrl.cli.findings import any_problem, as_json, counts_text, findings_text
from lightningrl.cli.terminal import console
from lightningrl.cli.tree import SHORT, rollout_tree
from lightningrl.cli.trial import Trial, run_trial, trial_policies
from lightningrl.cli.wiring import Wiring, count_wiring
from lightningrl.errors import ConfigError
from lightningrl.experience.train_when import load_train_when
from lightningrl.recipe import LoadedRecipe, Recipe, load_recipe
from lightningrl.schema import Endpoint, Mode
from lightningrl.tasks import load_tasks

_SPLITS = ("train", "val", "test")


@click.command("try")
@click.argument("recipe", type=click.Path(path_type=Path))
@click.argument("overrides", nargs=-1, metavar="[key=value]...")
@click.option(
    "--policy", "url", required=True, metavar="URL", help="OpenAI-compatible, up to /v1 included."
)
@click.option("--policy-key", envvar="LIGHTNINGRL_POLICY_KEY", hidden=True, help="Its API key.")
@click.option("--model", metavar="NAME", help="What the endpoint calls its model.")
@click.option("--tasks", type=click.IntRange(min=1), default=3, show_default=True)
@click.option("--split", type=click.Choice(_SPLITS), default="val", show_default=True)
@click.option(
    "--repeat/--no-repeat",
    default=True,
    show_default=True,
    help="Run the first task once more when the others have ended: it shows state that outlives a rollout, and caches.",
)
@click.option("--full", is_flag=True, help="Don't shorten texts.")
@click.option("--json", "as_object", is_flag=True, help="Print one JSON object, and no trees.")
def try_agent(
    recipe: Path,
    overrides: tuple[str, ...],
    url: str,
    policy_key: str | None,
    model: str | None,
    tasks: int,
    split: str,
    repeat: bool,
    full: bool,
    as_object: bool,
) -> None:
    """Check that an agent is wired up.

    Runs the agent of RECIPE on a few tasks against an endpoint, and says what was seen and what is wrong with it, by
    the checks that `train` and `doctor` have as well. Exits with 0 only if there is no problem; warnings alone exit
    with 0. An endpoint's API key is read from LIGHTNINGRL_POLICY_KEY.
    """
    # What the user's code prints is no part of the object.
    quiet = contextlib.redirect_stdout(sys.stderr) if as_object else contextlib.nullcontext()
    with quiet:
        loaded = load_recipe(recipe, overrides)
        load_train_when(loaded.recipe.policies, loaded.folder)
        chosen = _tasks(loaded, split, tasks)
        policies = trial_policies(loaded.recipe, Endpoint(url.rstrip("/"), policy_key), model)
        with tempfile.TemporaryDirectory(prefix="lightningrl-try-") as folder:
            trial = asyncio.run(
                run_trial(
                    loaded,
                    chosen,
                    policies,
                    mode=Mode(split),
                    store_path=Path(folder) / "store.db",
                    overrides=overrides,
                    repeat=repeat,
                    prints_to=_STDERR if as_object else None,
                )
            )
        wiring = count_wiring(trial.records, loaded.recipe.policies)
        findings = _findings(loaded.recipe, trial)
    if as_object:
        click.echo(json.dumps(_summary(wiring, findings)))
    else:
        terminal = console()
        _print_trees(terminal, trial, None if full else SHORT)
        terminal.print(report(wiring, findings))
    if any_problem(findings):
        raise SystemExit(1)


_STDERR = 2


def _findings(recipe: Recipe, trial: Trial) -> list[Finding]:
    evidence = Evidence(
        recipe.name, trial.records, recipe, unidentified=trial.unidentified, code=True
    )
    return examine(evidence, Place.TRY)


def _tasks(loaded: LoadedRecipe, split: str, count: int) -> list[tuple[str, dict[str, object]]]:
    data = loaded.recipe.data
    source = getattr(data, split) if data is not None else None
    if source is None:
        raise ConfigError(f"the recipe has no data.{split}; add it, or choose another --split")
    return load_tasks(source, folder=loaded.folder, split=split)[:count]


def _print_trees(terminal: Console, trial: Trial, limit: int | None) -> None:
    for rollout, attempts in zip(trial.rollouts, trial.records, strict=True):
        terminal.print(rollout_tree(rollout, attempts, None, limit=limit))


def report(wiring: Wiring, findings: Sequence[Finding]) -> Text:
    """What was seen, and what is wrong, for the terminal."""
    text = Text()
    text.append(f"\n{wiring.rewarded} of {counted(wiring.rollouts, 'rollout')} have a reward, ")
    text.append(f"{wiring.joined} a joined model call\n")
    if wiring.awaited:
        text.append(f"awaited: rewards {', '.join(wiring.awaited)}, which nobody gives here\n")
    for (model, policy), calls in sorted(wiring.redirected.items()):
        text.append(
            f"redirected: {counted(calls, 'call')} for model {model!r} to policy {policy!r}\n"
        )
    text.append(
        f"trainable: {counted(wiring.trainable, 'call')}\n", "green" if wiring.trainable else ""
    )
    for reason, calls in sorted(wiring.untrainable.items()):
        text.append(f"not trainable: {counted(calls, 'call')}, {reason}\n", "yellow")
    asked, right, unjudged = wiring.formats
    if asked:
        text.append(
            f"format asked for in words: {right} of {counted(asked, 'answer')} have it\n",
            "yellow" if right < asked else "",
        )
    if unjudged:
        text.append(
            f"format asked for in words: {counted(unjudged, 'answer')} could not be judged\n",
            "yellow",
        )
    if not any_problem(findings):
        text.append("✓ the agent is wired up", "bold green")
        text.append(", with warnings" if findings else "", "bold yellow")
    else:
        text.append_text(counts_text(findings))
    return text.append_text(findings_text(findings))


def _summary(wiring: Wiring, findings: Sequence[Finding]) -> dict[str, Any]:
    """What `report` says, for programs."""
    redirected = [
        {"model": model, "policy": policy, "calls": calls}
        for (model, policy), calls in sorted(wiring.redirected.items())
    ]
    return {
        "wired": not any_problem(findings),
        **asdict(replace(wiring, redirected={})),
        "formats": wiring.formats._asdict(),
        "redirected": redirected,
        "findings": as_json(findings),
    }
