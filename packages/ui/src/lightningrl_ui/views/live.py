"""A run at this moment: its rollouts, leases, runners, engines and holds, and what waits for what.

What is in the store is read from there, whoever writes it. Calls in flight are known to the gateway alone, which is
asked where the run is a server's.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from lightningrl.errors import LightningError
from lightningrl.gateway.control import GatewayClient, PolicyStatus
from lightningrl.schema import (
    Attempt,
    AttemptState,
    Mode,
    Policy,
    Rollout,
    RolloutState,
    Worker,
)
from lightningrl.store import RolloutQuery, Store
from lightningrl.store.records import GroupQuery, GroupSummary
from lightningrl.store.urls import Kind, kind_of, path_of
from lightningrl_ui.sources import Run

MOST = 200
"""Rollouts of a kind that are listed."""

SEEN_SECONDS = 30.0
"""How long after its last word a runner or a gateway counts as there."""

_ASK_SECONDS = 3.0
"""How long a gateway may take to say what it does."""


@dataclass(frozen=True)
class Lease:
    """A rollout that runs, and who holds it."""

    rollout: Rollout
    attempt: Attempt
    runs_seconds: float
    left_seconds: float
    """Until the lease expires, unless it is renewed; below 0 it has, and the rollout will be tried again."""


@dataclass(frozen=True)
class PolicyLine:
    """A policy, by its row in the store and, where the gateway answered, by what that is doing."""

    policy: Policy
    held_seconds: float | None
    """How long its hold goes on at most. `None`: calls pass."""
    status: PolicyStatus | None
    """`None`: the gateway was not asked, or did not answer."""


@dataclass(frozen=True)
class LiveView:
    """A run at one moment."""

    at: datetime
    """By the store's clock."""
    counts: dict[str, int]
    """State -> rollouts of the iterations; `awaiting` are those that succeeded and await rewards."""
    iterations: tuple[int, ...]
    """Those that are under way: the newest, and those with rollouts that are queued or run."""
    open_groups: tuple[GroupSummary, ...]
    queued: tuple[Rollout, ...]
    """The first ones, oldest first."""
    leases: tuple[Lease, ...]
    workers: tuple[tuple[Worker, float], ...]
    """Runners that take this run's rollouts, and seconds since their last word."""
    policies: tuple[PolicyLine, ...]
    gateways: tuple[str, ...]
    unknown: str
    """Why calls in flight are not known; empty where they are."""
    waits: tuple[str, ...]
    """What waits for what, a sentence each."""

    @property
    def digest(self) -> str:
        """A text that changes when what happens does; time alone doesn't change it."""
        states = [(one.policy.revision, one.status) for one in self.policies]
        runs = [(one.attempt.id, one.left_seconds < 0) for one in self.leases]
        runners = [(one.name, one.attempt_ids) for one, _ in self.workers]
        return repr((self.counts, self.open_groups, states, runs, runners, self.unknown))


async def live_view(store: Store, run: Run, key: str | None) -> LiveView:
    """What a run is doing.

    Args:
        store: the run's.
        run: the run.
        key: of the run's server.
    """
    now = await store.now()
    queued = await _in_state(store, run, RolloutState.QUEUED)
    running = await _in_state(store, run, RolloutState.RUNNING)
    iterations = await _under_way(store, run, [*queued, *running])
    counts = await _counts(store, run, iterations)
    groups = [
        group
        for number in iterations
        for group in await store.groups(
            GroupQuery(run=run.name, iteration=number, complete=False, limit=MOST)
        )
    ]
    leases = await _leases(store, running, now)
    workers = [
        (one, (now - one.seen_at).total_seconds())
        for one in await store.workers(seen_within_seconds=SEEN_SECONDS)
        if one.run in (None, run.name)
    ]
    statuses, unknown = await _statuses(run, key)
    policies = tuple(
        PolicyLine(one, _held_seconds(one, now), statuses.get(one.name))
        for one in await store.policies()
        if one.run == run.name
    )
    gateways = await store.gateways(seen_within_seconds=SEEN_SECONDS)
    return LiveView(
        at=now,
        counts={state: count for state, count in counts.items() if count},
        iterations=tuple(iterations),
        open_groups=tuple(groups),
        queued=tuple(queued),
        leases=tuple(leases),
        workers=tuple(workers),
        policies=policies,
        gateways=tuple(one.name for one in gateways),
        unknown=unknown,
        waits=tuple(_waits(counts, groups, leases, [one for one, _ in workers], policies)),
    )


async def _in_state(store: Store, run: Run, state: RolloutState) -> list[Rollout]:
    return await store.rollouts(RolloutQuery(run=run.name, states=(state,), limit=MOST))


async def _under_way(store: Store, run: Run, unended: Sequence[Rollout]) -> list[int]:
    latest = await store.rollouts(RolloutQuery(run=run.name, descending=True, limit=1))
    return sorted({one.spec.iteration for one in (*latest, *unended)})


async def _counts(store: Store, run: Run, iterations: Sequence[int]) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for iteration in iterations:
        for mode in Mode:
            found = await store.progress(run.name, mode, iteration)
            counts["queued"] += found.queued
            counts["running"] += found.running
            counts["awaiting"] += found.awaiting
            counts["succeeded"] += found.succeeded - found.awaiting
            counts["failed"] += found.failed
    return counts


async def _leases(store: Store, running: Sequence[Rollout], now: datetime) -> list[Lease]:
    by_id = {one.id: one for one in running}
    attempts = await store.attempts(list(by_id))
    return [
        Lease(
            by_id[one.rollout_id],
            one,
            (now - one.started_at).total_seconds(),
            (one.lease_expires_at - now).total_seconds(),
        )
        for one in attempts
        if one.state is AttemptState.RUNNING
    ]


def _held_seconds(policy: Policy, now: datetime) -> float | None:
    return None if policy.held_until is None else (policy.held_until - now).total_seconds()


async def _statuses(run: Run, key: str | None) -> tuple[dict[str, PolicyStatus], str]:
    """What the gateway does for each of the run's policies, and why that is not known."""
    url = run.store_url or ""
    if kind_of(url) is not Kind.HTTP:
        last = _last_server(url)
        where = f" (last at {last})" if last else ""
        return {}, (
            f"Calls in flight are known to the run's server alone{where}: give `lightningrl ui` its URL, and its"
            " admin key in LIGHTNINGRL_KEY."
        )
    try:
        async with asyncio.timeout(_ASK_SECONDS), GatewayClient(url, key) as gateway:
            found = await gateway.status()
    except TimeoutError:
        return {}, f"The gateway at {url} did not say within {_ASK_SECONDS:g} s what it is doing."
    except LightningError as error:
        return {}, f"The gateway does not say what it is doing: {error}"
    return {one.name: one for one in found if one.run == run.name}, ""


def _last_server(url: str) -> str | None:
    """Where a store was last served from. It is said and not asked: the folder may be somebody else's."""
    if kind_of(url) is not Kind.SQLITE:
        return None
    # Only now: servers and PostgreSQL need no apsw.
    from lightningrl.store.sqlite.lock import announced_url

    return announced_url(path_of(url))


def _waits(
    counts: Mapping[str, int],
    groups: Sequence[GroupSummary],
    leases: Sequence[Lease],
    workers: Sequence[Worker],
    policies: Sequence[PolicyLine],
) -> list[str]:
    """See `LiveView.waits`; from what trains down to what answers."""
    found: list[str] = []
    for iteration in sorted({one.iteration for one in groups}):
        of_it = [one for one in groups if one.iteration == iteration]
        missing = sum(one.members - one.complete for one in of_it)
        awaiting = sum(one.ended - one.complete for one in of_it)
        late = f", {awaiting} of them for rewards that are still to come" if awaiting else ""
        found.append(
            f"Iteration {iteration} waits for {missing} rollouts in {len(of_it)} groups{late}."
        )
    queued, held = counts.get("queued", 0), sum(one.running for one in workers)
    if queued and not workers:
        found.append(
            f"{queued} queued rollouts wait for a runner: none asked for this run's in the last {SEEN_SECONDS:g} s."
        )
    elif queued:
        found.append(
            f"{queued} queued rollouts wait for room at {len(workers)} runners, which hold {held} now."
        )
    expired = sum(one.left_seconds < 0 for one in leases)
    if expired:
        found.append(
            f"{expired} running rollouts wait to be tried again: their runner let the lease expire."
        )
    found += [text for one in policies for text in _policy_waits(one)]
    known = [one.status for one in policies if one.status is not None]
    called = sum(one.in_flight + one.waiting for one in known)
    if known and len(leases) > called:
        found.append(
            f"{len(leases) - called} running rollouts at least have no model call under way: their agent, a tool or"
            " the reward works."
        )
    return found


def _policy_waits(line: PolicyLine) -> list[str]:
    name, status = line.policy.name, line.status
    if status is None:
        if line.held_seconds is None:
            return []
        return [
            f"New calls of policy {name} wait: it is held, for {line.held_seconds:.0f} s at most."
        ]
    found: list[str] = []
    if status.state != "open":
        drains = f" while {status.in_flight} running ones end" if status.in_flight else ""
        found.append(
            f"Policy {name} is {status.state}: {status.waiting} calls wait for its new weights{drains}."
        )
    elif status.in_flight:
        found.append(f"{status.in_flight} calls wait for the engines of policy {name}.")
    down = [one for one in status.endpoints if not one.up]
    if down:
        found.append(
            f"{len(down)} of {len(status.endpoints)} engines of policy {name} are out of rotation."
        )
    return found
