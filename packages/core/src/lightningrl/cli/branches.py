"""Forks of a stored run's rollouts, run by the ordinary server and worker on a store of their own.

Invariant: the run itself is only read, so nothing of a fork is ever trained, whatever process holds the run's store.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
from msgspec import structs

from lightningrl.cli.stored_run import StoredRun
from lightningrl.cli.trial import serving, start_worker, trial_policies, work
from lightningrl.errors import ConfigError, NotFound
from lightningrl.gateway import Gateway
from lightningrl.machine.clock import SystemClock
from lightningrl.recipe import LoadedRecipe, Recipe, changed_keys, load_recipe
from lightningrl.schema import (
    AttemptState,
    CallEvent,
    CallStatus,
    Endpoint,
    Fork,
    GroupId,
    Mode,
    NewRollout,
    Policy,
    RetryPolicy,
    RolloutId,
    RolloutState,
    StepId,
    rollout_id,
)
from lightningrl.store import RolloutQuery
from lightningrl.store.base import AttemptDump, RolloutDump
from lightningrl.store.sqlite import SqliteStore
from lightningrl.traces import AttemptRecord, read_attempts
from lightningrl.user_input.names import suggest

VARIANT = "fork"
_NOWHERE = Endpoint("http://127.0.0.1:9/v1")
"""Of a policy that is never asked: every answer is recorded."""


@dataclass(frozen=True)
class Wanted:
    """One fork that is asked for."""

    parent: AttemptRecord
    """That succeeded."""
    fork: Fork
    branches: int = 1


async def parents_of(run: StoredRun, rollout: str | None, last: int) -> list[AttemptRecord]:
    """The attempts that succeeded of one rollout, or of the latest ones of a run, oldest first.

    Raises:
        NotFound: there is none.
    """
    ids = () if rollout is None else (RolloutId(rollout),)
    states = (RolloutState.SUCCEEDED,)
    query = RolloutQuery(run=run.name, ids=ids, states=states, descending=True, limit=last)
    rollouts = (await run.store.rollouts(query))[::-1]
    if not rollouts:
        which = (
            "no rollout that succeeded"
            if rollout is None
            else f"no rollout {rollout!r} that succeeded"
        )
        raise NotFound(f"run {run.name!r} has {which}; 'lightningrl show' lists them")
    found: list[AttemptRecord] = []
    for attempts in await read_attempts(run.store, rollouts):
        good = [one for one in attempts if one.attempt.state is AttemptState.SUCCEEDED]
        found += good[-1:]
    return found


def step_of(parent: AttemptRecord, step: str) -> StepId:
    """A model step of an attempt, by its number from 1 on, or by its id.

    Raises:
        ConfigError: it has no such step.
    """
    delivered = [
        one
        for one in parent.events
        if isinstance(one, CallEvent) and one.status is CallStatus.DELIVERED
    ]
    steps = list(dict.fromkeys(one.step_id for one in delivered))
    if step in steps:
        return StepId(step)
    if not step.isdecimal() or not 1 <= int(step) <= len(steps):
        raise ConfigError(
            f"--step: rollout {parent.rollout.id!r} has model steps 1 to {len(steps)}, and no {step!r}"
        )
    return steps[int(step) - 1]


def policies_of(
    stored: Sequence[Policy], recipe: Recipe, policy: str | None, key: str | None, model: str | None
) -> list[Policy]:
    """Who answers what is sampled: policies with the rules that the run's requests were rewritten by.

    Args:
        stored: the run's.
        recipe: the run's; says what policies there are where none is stored.
        policy: an endpoint's URL that answers for all, or the one policy that does. `None`: each by its own engines.
        key: the endpoint's.
        model: what the endpoint calls its model. `None`: as the policy is called.

    Raises:
        ConfigError: there is no such policy, or `model` is given for several.
    """
    free = [structs.replace(one, held_until=None, held_since=None, live=None) for one in stored]
    if policy is not None and "://" in policy:
        endpoint = Endpoint(policy.rstrip("/"), key)
        if not free or model is not None:
            made = trial_policies(recipe, endpoint, model)
            rules = {one.name: one.rules for one in free}
            only = next(iter(rules.values())) if len(rules) == 1 else None
            return [
                structs.replace(one, rules=rules.get(one.name, only or one.rules)) for one in made
            ]
        return [structs.replace(one, endpoints=(endpoint,)) for one in free]
    if model is not None:
        raise ConfigError(
            "--model says what the endpoint of --policy URL calls its model; name that"
        )
    if policy is None:
        return free
    names = [one.name for one in free]
    if policy not in names:
        raise ConfigError(f"--policy: the run has no policy {policy!r}.{suggest(policy, names)}")
    # Alone and with nothing declared, a policy answers every call.
    return [structs.replace(free[names.index(policy)], replaces=(), agents=())]


def unasked_policies(stored: Sequence[Policy], recipe: Recipe) -> list[Policy]:
    """The run's policies where no engine is ever asked."""
    return policies_of(stored, recipe, _NOWHERE.url, None, None)


async def run_forks(
    run: StoredRun,
    loaded: LoadedRecipe,
    wanted: Sequence[Wanted],
    policies: Sequence[Policy],
    store_path: Path,
) -> list[list[AttemptRecord]]:
    """Run the agent once for each branch; per fork its branches.

    Args:
        run: read alone.
        loaded: its recipe.
        wanted: at least one.
        policies: who answers what is sampled.
        store_path: of the store that is made.

    Raises:
        ConfigError: the agent can't be loaded; its worker has said why on stderr.
        RunError: the worker ended before the branches had.
    """
    new = [_rollouts(loaded.recipe, one) for one in wanted]
    store = SqliteStore.open(store_path)
    try:
        await store.load(resources=await run.store.resources(run.name))
        for one in wanted:
            await store.load(rollouts=[_dumped(one.parent)], completed=[one.parent.rollout.id])
        for policy in policies:
            await store.put_policy(policy)
        gateway = Gateway(store, clock=SystemClock(), require_keys=False)
        async with serving(store, gateway) as url:
            every = [rollout for of_one in new for rollout in of_one]
            start = partial(start_worker, loaded, url, _overrides(loaded))
            await work(store, loaded.recipe.name, Mode.VAL, [every], start)
        branches: list[list[AttemptRecord]] = []
        for of_one in new:
            ids = tuple(one.id for one in of_one)
            found = {one.id: one for one in await store.rollouts(RolloutQuery(ids=ids))}
            attempts = await read_attempts(store, [found[one] for one in ids])
            branches.append([one for of_rollout in attempts for one in of_rollout[-1:]])
        return branches
    finally:
        await store.close()


def _rollouts(recipe: Recipe, wanted: Wanted) -> list[NewRollout]:
    spec, fork = wanted.parent.rollout.spec, wanted.fork
    group = GroupId(f"{spec.id}/{VARIANT}/{fork.step or 'all'}")
    return [
        structs.replace(
            spec,
            id=rollout_id(group, member),
            run=recipe.name,
            mode=Mode.VAL,
            iteration=0,
            group_id=group,
            member=member,
            variant=VARIANT,
            sampling=recipe.sampling.train,
            # A person is waiting for the first failure, not for the agent's luck.
            retry=RetryPolicy(max_attempts=1, max_infrastructure_failures=0),
            await_rewards=(),
            await_seconds=None,
            fork=fork,
        )
        for member in range(wanted.branches)
    ]


def _dumped(parent: AttemptRecord) -> RolloutDump:
    """The rollout as another store takes it, with the attempt that counts."""
    attempt = structs.replace(parent.attempt, number=1)
    rollout = structs.replace(parent.rollout, attempts=1, forgiven=0)
    return RolloutDump(0, rollout, (AttemptDump(attempt, attempt.lease_expires_at, parent.events),))


def _overrides(loaded: LoadedRecipe) -> list[str]:
    """What the run's recipe says otherwise than the file that it was started from, as its worker needs it."""
    values: dict[str, Any] = msgspec.to_builtins(loaded.recipe)
    texts: list[str] = []
    for key in changed_keys(load_recipe(loaded.path).recipe, loaded.recipe):
        value: Any = values
        for part in key.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        texts.append(f"{key}={msgspec.json.encode(value).decode()}")
    return texts
