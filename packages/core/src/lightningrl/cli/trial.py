"""A trial: a few rollouts of a recipe's agent against a given endpoint, without a trainer.

Invariant: the same server and the same worker process as in training, on a store that is gone afterwards.
Whatever happens, the worker has ended when `run_trial` returns.
"""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from msgspec import structs

from lightningrl.errors import ConfigError, RunError
from lightningrl.gateway import Gateway
from lightningrl.machine.clock import SystemClock
from lightningrl.recipe import LoadedRecipe, Recipe, rewrite_rules
from lightningrl.runner.guard import EXIT_REPLACE
from lightningrl.runner.process import EXIT_CONFIG, worker_command, worker_environment
from lightningrl.schema import (
    Endpoint,
    Mode,
    NewRollout,
    Policy,
    RetryPolicy,
    Rollout,
    group_id,
    rollout_id,
)
from lightningrl.server import Application
from lightningrl.server.serve import run
from lightningrl.store import RolloutQuery
from lightningrl.store.sqlite import SqliteStore
from lightningrl.traces import AttemptRecord, read_attempts

_LOOK_SECONDS = 1.0
"""How often the worker and the attempts' time are looked at while rollouts run."""


@dataclass(frozen=True)
class Trial:
    """What came out."""

    rollouts: tuple[Rollout, ...]
    """In the order of the tasks."""
    records: tuple[tuple[AttemptRecord, ...], ...]
    """The attempts of each."""
    unidentified: Mapping[str, int]
    """Origin -> model calls that were refused since nothing showed them to be of any attempt."""


def trial_policies(recipe: Recipe, endpoint: Endpoint, model: str | None) -> list[Policy]:
    """The recipe's policies, all answered by one endpoint.

    Args:
        recipe: a recipe without policies gets one, `policy`, that answers every call.
        endpoint: the given one.
        model: what the endpoint calls its model; the policy's alias where it is `None`.

    Raises:
        ConfigError: `model` is given and the recipe has several policies.
    """
    refuse = recipe.gateway.unknown_fields == "refuse"
    if not recipe.policies:
        name = model or "policy"
        rules = rewrite_rules(recipe, None)
        return [Policy(name, recipe.name, 0, (endpoint,), rules=rules, refuse_unknown=refuse)]
    if model is not None and len(recipe.policies) > 1:
        raise ConfigError(
            f"--model names one model, and the recipe has {len(recipe.policies)} policies"
            f" ({', '.join(recipe.policies)}); serve the models under these names instead"
        )
    policies: list[Policy] = []
    for alias, policy in recipe.policies.items():
        replaces = policy.replaces
        declares = bool(replaces or policy.agents)
        if model is not None and model != alias and declares:
            # A policy that declares nothing answers every call, and must go on doing so.
            replaces = tuple(one for one in dict.fromkeys((alias, *replaces)) if one != model)
        policies.append(
            Policy(
                name=model or alias,
                run=recipe.name,
                version=0,
                endpoints=(endpoint,),
                trainable=policy.trainable,
                replaces=replaces,
                agents=policy.agents,
                rules=rewrite_rules(recipe, alias),
                refuse_unknown=refuse,
            )
        )
    return policies


async def run_trial(
    loaded: LoadedRecipe,
    tasks: Sequence[tuple[str, dict[str, Any]]],
    policies: Sequence[Policy],
    *,
    mode: Mode,
    store_path: Path,
    overrides: Sequence[str] = (),
    repeat: bool = False,
    prints_to: int | None = None,
) -> Trial:
    """Run the agent once on each task.

    Args:
        loaded: the recipe.
        tasks: ids and rows, at least one.
        policies: who answers.
        mode: of the rollouts.
        store_path: of the store that is made.
        overrides: `key=value` texts for the recipe.
        repeat: run the first task once more when the others have ended and one succeeded: state that outlives a
            rollout, and a cache that answers a second one, show in that alone.
        prints_to: file descriptor of what the agent prints. `None`: this process's own.

    Raises:
        ConfigError: the agent can't be loaded; its worker has said why on stderr.
        RunError: the worker ended before the rollouts had.
    """
    recipe = loaded.recipe
    first = _new_rollouts(recipe, tasks, mode)
    again = [structs.replace(first[0], id=rollout_id(first[0].group_id, 1), member=1)]
    store = SqliteStore.open(store_path)
    try:
        for policy in policies:
            await store.put_policy(policy)
        gateway = Gateway(store, clock=SystemClock(), require_keys=False)
        async with serving(store, gateway) as url:
            batches = [first, again] if repeat else [first]
            start = partial(start_worker, loaded, url, overrides, prints_to)
            await work(store, loaded.recipe.name, mode, batches, start)
        query = RolloutQuery(ids=tuple(one.id for one in [*first, *again]))
        by_id = {rollout.id: rollout for rollout in await store.rollouts(query)}
        rollouts = tuple(by_id[one.id] for one in [*first, *again] if one.id in by_id)
        records = await read_attempts(store, rollouts)
    finally:
        await store.close()
    return Trial(rollouts, tuple(tuple(attempts) for attempts in records), gateway.unidentified)


def _new_rollouts(
    recipe: Recipe, tasks: Sequence[tuple[str, dict[str, Any]]], mode: Mode
) -> list[NewRollout]:
    new: list[NewRollout] = []
    for task_id, task in tasks:
        group = group_id(recipe.name, mode, 0, task_id)
        new.append(
            NewRollout(
                id=rollout_id(group, 0),
                run=recipe.name,
                mode=mode,
                iteration=0,
                task_id=task_id,
                group_id=group,
                member=0,
                task=task,
                sampling=recipe.sampling.train if mode is Mode.TRAIN else recipe.sampling.val,
                timeout_seconds=recipe.runner.timeout_seconds,
                # A person is waiting for the first failure, not for the agent's luck.
                retry=RetryPolicy(max_attempts=1, max_infrastructure_failures=0),
                rewards=recipe.rewards,
                await_rewards=recipe.await_rewards,
                await_seconds=recipe.await_seconds,
            )
        )
    return new


@asynccontextmanager
async def serving(store: SqliteStore, gateway: Gateway) -> AsyncGenerator[str]:
    """Serve the store and the gateway on a loopback port; give its URL."""
    listener = socket.create_server(("127.0.0.1", 0))
    stop, ready = asyncio.Event(), asyncio.Event()
    server = asyncio.create_task(run(Application(store, gateway), listener, stop, ready.set))
    answers = asyncio.create_task(ready.wait())
    try:
        await asyncio.wait({server, answers}, return_when=asyncio.FIRST_COMPLETED)
        if not ready.is_set():
            await server  # it failed to start: its error is the reason
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        answers.cancel()
        stop.set()
        await server
        listener.close()


async def work(
    store: SqliteStore,
    run: str,
    mode: Mode,
    batches: Sequence[Sequence[NewRollout]],
    start: Callable[[], Awaitable[asyncio.subprocess.Process]],
) -> None:
    """Run worker processes until the rollouts have ended, one batch after the other, in one of them if it lives.

    Nobody is there to give what they still await. A batch after one in which nothing succeeded is not run.
    """
    left = deque(batches)
    await store.enqueue(left.popleft())
    done = False
    while not done:
        worker = await start()
        try:
            done = await _all_end(store, run, mode, left, worker)
        finally:
            if worker.returncode is None:
                worker.kill()  # nothing runs any more, so there is nothing that it could lose
            status = await worker.wait()
        if not done and status != EXIT_REPLACE:
            _raise_early_end(status)


async def _all_end(
    store: SqliteStore,
    run: str,
    mode: Mode,
    left: deque[Sequence[NewRollout]],
    worker: asyncio.subprocess.Process,
) -> bool:
    """Whether all rollouts ended while the worker lived; takes the next batch from `left` when the last has."""
    complete = 0
    while True:
        alive = worker.returncode is None
        progress = await store.progress(
            run, mode, 0, seen=complete, wait_seconds=_LOOK_SECONDS if alive else 0.0
        )
        complete = progress.ended
        if complete + progress.awaiting == progress.total:
            if not left or not progress.succeeded:
                return True
            await store.enqueue(left.popleft())
        elif not alive:
            return False
        await store.expire()


def _raise_early_end(status: int) -> None:
    if status == EXIT_CONFIG:
        raise ConfigError("the agent can't be loaded; the lines above say why")
    raise RunError(
        f"the worker process ended with status {status} while rollouts were running; what it printed"
        " is above (a negative status is a signal: -9 is often memory, -11 a crash in native code)"
    )


async def start_worker(
    loaded: LoadedRecipe, url: str, overrides: Sequence[str], prints_to: int | None = None
) -> asyncio.subprocess.Process:
    """A runner's worker of the server at `url`; what its agents print goes to `prints_to`, or to this process's own."""
    python = loaded.agents_python()
    return await asyncio.create_subprocess_exec(
        *worker_command(loaded.path, url, python=python, overrides=overrides),
        stdin=asyncio.subprocess.PIPE,
        stdout=prints_to,
        env=worker_environment(None),
        start_new_session=True,
    )
