"""`lightningrl eval`: a policy, or two of them, on one split of a recipe's tasks.

Invariant: everything is run anew, as training scores it: the same agent, reward and sampling, one rollout per task. The
k-th policy's rollouts are iteration k of a run of their own, so that `lightningrl show` has them.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from msgspec import structs
from rich.console import Console

from lightningrl.cli import terminal
from lightningrl.errors import ConfigError
from lightningrl.machine.durable import write_text
from lightningrl.recipe import Data, Engine, LoadedRecipe, PolicyRecipe
from lightningrl.schema import AGENT_FAILURES, Mode, NewRollout, RolloutId, RolloutState
from lightningrl.statistics import Estimate, mean_estimate, paired_difference
from lightningrl.store.base import RolloutQuery, Store
from lightningrl.tasks import load_tasks
from lightningrl.traces import read_parts
from lightningrl.user_input.names import suggest
from lightningrl_verl.start.folder import RunFolder
from lightningrl_verl.start.models import initial_model
from lightningrl_verl.start.policies import serve_frozen
from lightningrl_verl.start.precision import settle
from lightningrl_verl.start.preflight import find_model
from lightningrl_verl.start.progress import Display
from lightningrl_verl.start.site import Site, site
from lightningrl_verl.start.stopping import INTERRUPTED, cancel_on_signals, first
from lightningrl_verl.training.batches import GREEDY, SAMPLED, Task, scoring_rollouts
from lightningrl_verl.training.collect import collect

Split = Literal["train", "val", "test"]

BASE = "base"
"""Names the recipe's own model, before any warm start."""

_MODES = {"train": Mode.TRAIN, "val": Mode.VAL, "test": Mode.TEST}


@dataclass(frozen=True)
class Measured:
    """One policy with one way of sampling."""

    rewards: Mapping[str, float]
    """Task id -> reward, of the rollouts that have one."""
    failed: Mapping[str, int]
    """Kind of failure -> rollouts. Those with a `failure_reward` have a reward as well."""
    parts: Mapping[str, float]
    """Part of the reward -> its mean over the rollouts that have it."""

    @property
    def estimate(self) -> Estimate | None:
        """Mean reward with its interval. `None`: no rollout has one."""
        return mean_estimate(list(self.rewards.values())) if self.rewards else None


@dataclass(frozen=True)
class Evaluation:
    """What is to be measured, checked."""

    loaded: LoadedRecipe
    """Of the run that the rollouts are kept in; its policies are those of the recipe."""
    alias: str
    """The policy that is replaced."""
    policies: tuple[str, ...]
    """References or URLs; one, or two that are compared."""
    split: Split
    tasks: Sequence[Task]
    variants: tuple[str, ...]
    url_key: str | None


def check_evaluation(
    loaded: LoadedRecipe,
    policies: Sequence[str],
    *,
    alias: str | None,
    split: Split,
    variants: tuple[str, ...],
    url_key: str | None,
) -> Evaluation:
    """Check what is asked for, and read the tasks.

    Args:
        loaded: the recipe.
        policies: one or two of `base`, what `policies.NAME.model` may name relative to the working directory, and URLs
            of OpenAI-compatible endpoints.
        alias: which of the recipe's policies they stand for. `None`: its only trainable one.
        split: whose tasks.
        variants: how they are sampled.
        url_key: environment variable with the endpoint's key.

    Raises:
        ConfigError: a policy or the split isn't there, or there are more policies than two.
    """
    if not 1 <= len(policies) <= 2:
        raise ConfigError("--policy: name one policy, or two to compare")
    chosen = _alias(loaded, alias)
    for reference in policies:
        measured = with_policy(loaded, chosen, reference, url_key)
        for name, policy in measured.recipe.policies.items():
            if policy.model is not None:
                find_model(measured, name)
    source = getattr(loaded.recipe.data or Data(), split)
    if source is None:
        raise ConfigError(f"data.{split}: the recipe has no such split")
    tasks = load_tasks(source, folder=loaded.folder, split=split)
    return Evaluation(
        structs.replace(loaded, recipe=structs.replace(loaded.recipe, live=None)),
        chosen,
        tuple(policies),
        split,
        tasks,
        variants,
        url_key,
    )


def _alias(loaded: LoadedRecipe, alias: str | None) -> str:
    known = loaded.recipe.policies
    if alias is not None:
        if alias not in known:
            raise ConfigError(f"--as: the recipe has no policy {alias!r}.{suggest(alias, known)}")
        return alias
    trained = [name for name, policy in known.items() if policy.trainable]
    if len(trained) != 1:
        raise ConfigError(f"--as: say which of the policies {list(known)} is replaced")
    return trained[0]


async def evaluate(plan: Evaluation, overrides: Sequence[str], *, as_json: bool) -> int:
    """Measure, print and keep the result; return the exit code.

    Raises:
        ConfigError: a policy can't be found or used.
        RunError: every rollout of a policy failed, or a process was given up.
    """
    # JSON alone belongs on stdout, for programs.
    console = terminal.console(sys.stderr if as_json else sys.stdout)
    folder, loaded = _new_run(plan.loaded)
    loaded, precision = settle(loaded)
    if precision is not None:
        console.print(precision, highlight=False)
    results: list[dict[str, Measured]] = []
    with folder.locked():
        folder.adopt(loaded)
        task = asyncio.create_task(
            _measure_all(
                plan, loaded, [*overrides, f"name={loaded.recipe.name}"], folder, console, results
            )
        )
        cancel_on_signals(task, console)
        try:
            await task
        except asyncio.CancelledError:
            console.print(f"Stopped. What was run is in {str(folder.path)!r}.")
            return INTERRUPTED
    told = _told(plan, loaded, results)
    write_text(folder.path / "eval.json", json.dumps(told, indent=2) + "\n")
    if as_json:
        sys.stdout.write(json.dumps(told, indent=2) + "\n")
    else:
        _print(console, told, folder)
    return 0


def _new_run(loaded: LoadedRecipe) -> tuple[RunFolder, LoadedRecipe]:
    """The first free folder beside the run's own."""
    number = 1
    while True:
        suffix = f"-eval-{number}"
        path = Path(f"{loaded.run_folder}{suffix}")
        try:
            path.mkdir(parents=True)
        except FileExistsError:
            number += 1
            continue
        named = structs.replace(loaded.recipe, name=loaded.recipe.name + suffix, folder=str(path))
        return RunFolder(path), structs.replace(loaded, recipe=named)


async def _measure_all(
    plan: Evaluation,
    loaded: LoadedRecipe,
    overrides: Sequence[str],
    folder: RunFolder,
    console: Console,
    results: list[dict[str, Measured]],
) -> None:
    log = folder.logs / "eval.log"
    with Display(console, loaded.recipe.name, len(plan.policies), [], log) as display:
        async with site(loaded, overrides, folder) as here, here.runners:
            for number, reference in enumerate(plan.policies, start=1):
                display.begin(number)
                work = _measure(plan, loaded, reference, number, here, display, console, results)
                await first(work, here.watch())


async def _measure(
    plan: Evaluation,
    loaded: LoadedRecipe,
    reference: str,
    number: int,
    here: Site,
    display: Display,
    console: Console,
    results: list[dict[str, Measured]],
) -> None:
    measured = with_policy(loaded, plan.alias, reference, plan.url_key)
    display.phase(f"load {reference}")
    bases = {
        alias: await initial_model(measured, alias, console)
        for alias, policy in measured.recipe.policies.items()
        if policy.url is None
    }
    async with contextlib.AsyncExitStack() as stack:
        engines = await serve_frozen(measured, bases, here.gateway, stack)
        found: dict[str, Measured] = {}

        async def work() -> None:
            for variant in plan.variants:
                display.phase(f"score {reference}, {variant}")
                found[variant] = await _score(plan, measured, variant, number, here.store, display)

        await first(work(), *(engine.watch() for engine in engines))
    results.append(found)


def with_policy(
    loaded: LoadedRecipe, alias: str, reference: str, url_key: str | None
) -> LoadedRecipe:
    """The recipe with nothing that is trained, and one policy that is another.

    Args:
        loaded: the recipe.
        alias: the policy's.
        reference: see `check_evaluation`.
        url_key: see there.

    Folders are served by the embedded engine on this machine, whatever the recipe trains beside.
    """
    recipe = loaded.recipe
    policies = {name: _frozen(policy) for name, policy in recipe.policies.items()}
    if reference != BASE:
        policies[alias] = _replaced(policies[alias], reference, url_key)
    engine = Engine(slots=recipe.engine.slots, threads=recipe.engine.threads)
    trainer = structs.replace(recipe.trainer, ranks=1, nodes=1)
    alone = structs.replace(
        recipe,
        policies=policies,
        engine=engine,
        trainer=trainer,
        cluster="none",
        cluster_address=None,
    )
    return structs.replace(loaded, recipe=alone)


def _frozen(policy: PolicyRecipe) -> PolicyRecipe:
    return structs.replace(
        policy, trainable=False, warm_start=None, optimiser=None, vllm=None, train_agents=()
    )


def _replaced(policy: PolicyRecipe, reference: str, url_key: str | None) -> PolicyRecipe:
    if reference.startswith(("http://", "https://")):
        return structs.replace(
            policy,
            model=None,
            tiny=None,
            chat_template=None,
            unread_messages=None,
            url=reference,
            url_key=url_key,
        )
    # A folder is named from where the user stands, not from where the recipe lies.
    named = (
        reference if reference.startswith(("run:", "package:")) else str(Path(reference).resolve())
    )
    accepts = "accept" if policy.accepts_unread else None
    return structs.replace(
        policy, model=named, tiny=None, url=None, url_key=None, unread_messages=accepts
    )


async def _score(
    plan: Evaluation,
    loaded: LoadedRecipe,
    variant: str,
    number: int,
    store: Store,
    display: Display,
) -> Measured:
    algorithm = loaded.recipe.algorithm
    failure_reward = None if algorithm is None else algorithm.failure_reward
    rollouts = scoring_rollouts(loaded.recipe, plan.tasks, _MODES[plan.split], number, variant)
    await collect(
        store,
        rollouts,
        on_progress=display.rollouts,
        failures_count=failure_reward is not None,
    )
    return await _read(store, rollouts, failure_reward)


async def _read(
    store: Store, rollouts: Sequence[NewRollout], failure_reward: float | None
) -> Measured:
    found = await store.rollouts(RolloutQuery(ids=tuple(one.id for one in rollouts)))
    kinds: dict[RolloutId, Any] = {}
    failed = [one.id for one in found if one.state is not RolloutState.SUCCEEDED]
    for attempt in await store.attempts(failed):
        if attempt.failure is not None:  # the last attempt's stays
            kinds[attempt.rollout_id] = attempt.failure.kind
    rewards: dict[str, float] = {}
    for one in found:
        if one.state is RolloutState.SUCCEEDED and one.reward is not None:
            rewards[one.spec.task_id] = one.reward
        elif failure_reward is not None and kinds.get(one.id) in AGENT_FAILURES:
            rewards[one.spec.task_id] = failure_reward
    counts = Counter(str(getattr(kinds.get(one), "value", "cancelled")) for one in failed)
    return Measured(rewards, dict(counts), await read_parts(store, [one.id for one in found]))


def _told(
    plan: Evaluation, loaded: LoadedRecipe, results: Sequence[Mapping[str, Measured]]
) -> dict[str, Any]:
    told: dict[str, Any] = {
        "run": loaded.recipe.name,
        "recipe": str(plan.loaded.path),
        "split": plan.split,
        "tasks": len(plan.tasks),
        "policies": [
            {
                "policy": reference,
                **{
                    variant: {
                        "reward": _numbers(one.estimate),
                        "failed": dict(one.failed),
                        "parts": dict(one.parts),
                        "rewards": dict(one.rewards),
                    }
                    for variant, one in result.items()
                },
            }
            for reference, result in zip(plan.policies, results, strict=True)
        ],
    }
    if len(results) == 2:
        told["difference"] = {
            variant: _difference(results[0][variant], results[1][variant])
            for variant in plan.variants
        }
    return told


def _difference(before: Measured, after: Measured) -> dict[str, Any] | None:
    both = [task for task in before.rewards if task in after.rewards]
    if not both:
        return None
    found = paired_difference(
        [before.rewards[task] for task in both], [after.rewards[task] for task in both]
    )
    return {**(_numbers(found) or {}), "tasks": len(both)}


def _numbers(estimate: Estimate | None) -> dict[str, float] | None:
    if estimate is None:
        return None
    return {name: round(value, 6) for name, value in estimate._asdict().items()}


def _print(console: Console, told: Mapping[str, Any], folder: RunFolder) -> None:
    from rich.table import Table

    title = f"{told['tasks']} tasks of {told['split']!r}: mean reward, 95 % interval"
    table = Table(title=title, title_justify="left")
    for column in ("policy", "sampling", "reward", "interval", "of it", "failed"):
        table.add_column(column)
    for one in told["policies"]:
        for variant in (GREEDY, SAMPLED):
            if variant in one:
                found = one[variant]
                failed = ", ".join(f"{n} {kind}" for kind, n in found["failed"].items())
                parts = ", ".join(f"{name} {mean:.3f}" for name, mean in found["parts"].items())
                table.add_row(one["policy"], variant, *_cells(found["reward"]), parts, failed)
    for variant, one in told.get("difference", {}).items():
        table.add_row("second minus first", variant, *_cells(one, signed=True), "", "")
    console.print(table)
    console.print(
        f"Kept in {folder.path}: eval.json, and rollouts for 'lightningrl show'.", soft_wrap=True
    )


def _cells(numbers: Mapping[str, float] | None, *, signed: bool = False) -> tuple[str, str]:
    if numbers is None:
        return ("none", "")
    form = "{:+.3f}" if signed else "{:.3f}"
    mean, low, high = (form.format(numbers[name]) for name in ("mean", "low", "high"))
    return mean, f"{low} to {high}"
