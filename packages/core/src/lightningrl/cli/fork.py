"""`lightningrl fork RUN`: what would the agent have done from this step on?"""

from __future__ import annotations

import asyncio
import json
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import click
from rich.console import Group
from rich.text import Text

from lightningrl.cli.branches import (
    Wanted,
    parents_of,
    policies_of,
    run_forks,
    step_of,
    unasked_policies,
)
from lightningrl.cli.replayability import Replay, calls_of, report
from lightningrl.cli.stored_run import StoredRun, open_runs, server_options
from lightningrl.cli.terminal import console
from lightningrl.cli.tree import SHORT, fork_tree
from lightningrl.cli.verified import verify_prompts
from lightningrl.conversation.replaying import arrived_at
from lightningrl.errors import ConfigError
from lightningrl.recipe import LoadedRecipe, load_recipe
from lightningrl.schema import Fork, OnDivergence, StepId
from lightningrl.traces import AttemptRecord


@dataclass(frozen=True)
class _Asked:
    """The options of a fork."""

    rollout: str
    step: str
    branches: int
    policy: str | None
    policy_key: str | None
    model: str | None
    say: dict[str, Any] | None
    on_divergence: OnDivergence
    verify: bool


@click.command()
@click.argument("run", metavar="RUN")
@click.option("--rollout", metavar="ID", help="The parent; it must have succeeded.")
@click.option(
    "--step", metavar="K", help="The model step that is sampled anew: 1 is the first. Or its id."
)
@click.option("-n", "branches", type=click.IntRange(min=1), default=1, show_default=True)
@click.option(
    "--policy",
    metavar="NAME|URL",
    help="Who answers from step K on: an OpenAI-compatible endpoint, up to /v1 included, or one of the run's policies."
    " By default each of those, by the engines of a run that still trains.",
)
@click.option("--policy-key", envvar="LIGHTNINGRL_POLICY_KEY", hidden=True, help="The URL's key.")
@click.option("--model", metavar="NAME", help="What the endpoint of a URL calls its model.")
@click.option(
    "--say",
    metavar="TEXT",
    help="Give step K this answer, and sample from the next one on. A JSON object is a message of chat completions,"
    " such as one with tool_calls.",
)
@click.option(
    "--on-divergence",
    type=click.Choice([one.value for one in OnDivergence]),
    default=OnDivergence.FAIL.value,
    show_default=True,
    help="When the agent asks for what is not recorded: end there, or let the policy answer.",
)
@click.option(
    "--verify", is_flag=True, help="Have the engine render the trunk's prompts, and compare tokens."
)
@click.option(
    "--dry-run",
    is_flag=True,
    help="Sample nothing: replay the rollout, or the latest ones, to the end, and say what goes otherwise.",
)
@click.option(
    "--last",
    type=click.IntRange(min=1),
    default=100,
    show_default=True,
    help="With --dry-run: how many rollouts.",
)
@click.option(
    "--keep", type=click.Path(path_type=Path), help="Keep the branches in this new store."
)
@click.option(
    "--recipe", type=click.Path(path_type=Path), help="The run's; needed with --server alone."
)
@click.option("--full", is_flag=True, help="Don't shorten texts.")
@server_options
def fork(
    run: str,
    rollout: str | None,
    step: str | None,
    branches: int,
    policy: str | None,
    policy_key: str | None,
    model: str | None,
    say: str | None,
    on_divergence: str,
    verify: bool,
    dry_run: bool,
    last: int,
    keep: Path | None,
    recipe: Path | None,
    full: bool,
    server: str | None,
    key: str | None,
) -> None:
    """Replay a rollout up to a step, and let the policy go on from there.

    The agent runs again, unchanged. Each request that equals a recorded one is answered from the record; from step K on
    the policy is asked, sampled as the recipe trains. Prints the trunk once and the branches below it. RUN is a run's folder, its name in runs/, or with --server its name. It is only read: branches are never trained.
    """
    given = None if recipe is None else load_recipe(recipe)
    if keep is not None and keep.exists():
        raise ConfigError(f"--keep: {str(keep)!r} is there; name a new file")
    asked = None
    if not dry_run:
        if rollout is None or step is None:
            raise ConfigError("name --rollout ID and --step K, or --dry-run")
        said, diverges = _message(say), OnDivergence(on_divergence)
        asked = _Asked(rollout, step, branches, policy, policy_key, model, said, diverges, verify)
    elif any((step, policy, model, say, verify)) or branches > 1:
        raise ConfigError("--dry-run samples nothing, so it goes with none of the other options")
    with ExitStack() as stack:
        if keep is None:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="lightningrl-fork-"))
            keep = Path(folder) / "store.db"
        if asked is None:
            lines = asyncio.run(_dry_run(run, server, key, given, rollout, last, keep))
            click.echo("\n".join(lines))
        else:
            limit = None if full else SHORT
            console().print(asyncio.run(_fork(run, server, key, given, asked, keep, limit)))


def _message(say: str | None) -> dict[str, Any] | None:
    """The answer that a person gives: a text, or a message as JSON."""
    if say is None or not say.lstrip().startswith("{"):
        return None if say is None else {"content": say}
    try:
        message: Any = json.loads(say)
    except json.JSONDecodeError as error:
        raise ConfigError(f"--say: {say!r} begins as a JSON object and is none: {error}") from error
    unknown = set(message) - {"role", "content", "tool_calls"}
    if unknown or not set(message) & {"content", "tool_calls"}:
        raise ConfigError("--say: a message has content, tool_calls, or both")
    return {**cast("dict[str, Any]", message), "role": "assistant"}


def _recipe_of(run: StoredRun, given: LoadedRecipe | None) -> LoadedRecipe:
    loaded = given or run.recipe
    if loaded is None:
        raise ConfigError(
            "the agent is run again, and a server knows no recipe: name it by --recipe"
        )
    return loaded


async def _dry_run(
    run: str,
    server: str | None,
    key: str | None,
    given: LoadedRecipe | None,
    rollout: str | None,
    last: int,
    store: Path,
) -> list[str]:
    async with open_runs(run, server, key) as (found,):
        loaded = _recipe_of(found, given)
        parents = await parents_of(found, rollout, last)
        policies = unasked_policies(await found.store.policies(found.name), loaded.recipe)
        wanted = [Wanted(one, Fork(one.attempt.id)) for one in parents]
        again = await run_forks(found, loaded, wanted, policies, store)
    return report([Replay(one, each) for one, (each,) in zip(parents, again, strict=True)])


async def _fork(
    run: str,
    server: str | None,
    key: str | None,
    given: LoadedRecipe | None,
    asked: _Asked,
    store: Path,
    limit: int | None,
) -> Group:
    async with open_runs(run, server, key) as (found,):
        loaded = _recipe_of(found, given)
        (parent,) = await parents_of(found, asked.rollout, 1)
        step = step_of(parent, asked.step)
        stored = await found.store.policies(found.name)
        policies = policies_of(stored, loaded.recipe, asked.policy, asked.policy_key, asked.model)
        verified = [await verify_prompts(_trunk(parent, step), policies)] if asked.verify else []
        fork = Fork(parent.attempt.id, step, asked.say, asked.on_divergence)
        wanted = [Wanted(parent, fork, asked.branches)]
        (branches,) = await run_forks(found, loaded, wanted, policies, store)
    at = arrived_at(calls_of(parent), step)
    trunk = sum(one.started_at < at for one in parent.transitions)
    rewards = [one.rollout.reward for one in branches if one.rollout.reward is not None]
    mean = f", mean reward {sum(rewards) / len(rewards):.3f}" if rewards else ""
    lines = [*verified, f"{len(branches)} branches from step {asked.step}{mean}"]
    return Group(fork_tree(parent, trunk, branches, limit=limit), *map(Text, lines))


def _trunk(parent: AttemptRecord, step: StepId) -> list[Any]:
    calls = calls_of(parent)
    at = arrived_at(calls, step)
    return [one for one in calls if one.at <= at]
