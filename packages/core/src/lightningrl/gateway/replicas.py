"""Several gateways on one store: a weight sync holds them all, and one that died holds up nobody.

Each gateway says once a second that it lives, and which holds it has drained. Whoever holds a policy
waits until every living gateway has drained that hold. A gateway that was not seen for `LEASE_SECONDS`
counts as dead: before that time is up it has stopped passing calls by itself, because it knows when
it was last heard.

Invariants:
- No call is sampled while a policy's weights change: a gateway passes calls only while it is sure that
  a hold could not have begun without it.
- What the store says of a policy is what every gateway does, within a notification's time.

On a store with one writing process none of this runs.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging

from lightningrl.errors import StoreError
from lightningrl.gateway.policies import Policies, Served
from lightningrl.gateway.sync import GateState
from lightningrl.schema import DrainedHold, GatewayProcess, Policy, new_id
from lightningrl.store.base import Store

_LOG = logging.getLogger(__name__)

BEAT_SECONDS = 1.0
"""How often a gateway says that it lives."""

LEASE_SECONDS = 5.0
"""After this time in silence it counts as dead."""

FENCE_SECONDS = 4.0
"""After this time unheard it passes no calls: earlier than others may count it as dead."""

_WATCH_SECONDS = 30.0
_PAUSE_SECONDS = 0.2


class Replicas:
    """This gateway among the others on its store; implements `Others`."""

    def __init__(self, store: Store, policies: Policies) -> None:
        """Prepare; nothing is said before `start`."""
        self.name = new_id("gateway")
        self._store = store
        self._policies = policies
        self._drained: dict[tuple[str, str], DrainedHold] = {}
        """Run and policy -> the hold of it that this gateway has drained."""
        self._draining: dict[tuple[str, str], asyncio.Task[None]] = {}
        self._fenced = False
        self._fence_timer: asyncio.TimerHandle | None = None
        self._fencing: asyncio.Task[None] | None = None
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Be counted, then do as the store says, and go on doing so.

        In this order: whoever holds a policy either counts this gateway, or has committed the hold
        before it is read here.
        """
        await self._beat()
        await self._policies.load()
        self._drain_holds()
        self._tasks = [
            asyncio.create_task(self._keep_beating()),
            asyncio.create_task(self._watch()),
        ]

    async def close(self) -> None:
        """Be counted no more; call it when no call is under way."""
        if self._fence_timer is not None:
            self._fence_timer.cancel()
        tasks = [*self._tasks, *self._draining.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        with contextlib.suppress(StoreError):  # its row is passed over in a few seconds anyway
            await self._store.forget_gateway(self.name)

    # -- holds of the others ---------------------------------------------------------------------

    async def _watch(self) -> None:
        """Adopt what others change."""
        seen: list[Policy] | None = None
        while True:
            try:
                seen = await self._store.policies(seen=seen, wait_seconds=_WATCH_SECONDS)
                self._policies.adopt(seen, await self._store.now())
            except StoreError as error:
                _LOG.warning("can't see what other gateways do: %s", error)
                await asyncio.sleep(_PAUSE_SECONDS)
                continue
            self._drain_holds()

    def _drain_holds(self) -> None:
        """Begin to drain each hold that is new here; forget those that ended."""
        for served in self._policies:
            key = (served.policy.run, served.policy.name)
            since, known = served.policy.held_since, self._drained.get(key)
            if known is not None and known.since != since:
                del self._drained[key]
            under_way = self._draining.get(key)
            idle = under_way is None or under_way.done()
            if idle and since is not None and key not in self._drained:
                self._draining[key] = asyncio.create_task(self._drain(served, since))

    async def _drain(self, served: Served, since: int) -> None:
        policy = served.policy
        stopped = await served.gate.drain(policy.drain_seconds)
        if served.policy.held_since != since:
            return  # it ended meanwhile; `_drain_holds` looks at what there is instead
        if served.gate.in_flight:
            return
        drained = DrainedHold(policy.run, policy.name, since, stopped)
        self._drained[policy.run, policy.name] = drained
        await self._beat()

    # -- holds of this gateway's trainer ---------------------------------------------------------

    async def drained(self, served: Served) -> int | None:
        """See `Others.drained`."""
        since = served.policy.held_since
        self._drain_holds()
        seen: list[GatewayProcess] | None = None
        while since is not None and served.policy.held_since == since:
            seen = await self._store.gateways(
                seen_within_seconds=LEASE_SECONDS, seen=seen, wait_seconds=BEAT_SECONDS
            )
            stopped = [_stopped(one, served.policy) for one in seen]
            if stopped and None not in stopped:
                return sum(one or 0 for one in stopped)
            if served.gate.state is not GateState.HELD:
                return None
        return None

    async def all_drained(self, served: Served) -> bool:
        """See `Others.all_drained`."""
        living = await self._store.gateways(seen_within_seconds=LEASE_SECONDS)
        return all(_stopped(one, served.policy) is not None for one in living)

    # -- being alive -----------------------------------------------------------------------------

    async def _keep_beating(self) -> None:
        while True:
            await asyncio.sleep(BEAT_SECONDS)
            try:
                await self._beat()
            except StoreError as error:
                _LOG.warning("this gateway is not heard: %s", error)

    async def _beat(self) -> None:
        """Say that this gateway lives; it may pass calls for `FENCE_SECONDS` from before that."""
        loop = asyncio.get_running_loop()
        sent_at = loop.time()
        await self._store.see_gateway(self.name, tuple(self._drained.values()))
        until = sent_at + FENCE_SECONDS
        if until <= loop.time():
            return  # the answer came too late to rely on: the next one decides
        if self._fence_timer is not None:
            self._fence_timer.cancel()
        self._fence_timer = loop.call_at(until, self._fence)
        if self._fenced:
            await self._unfence()

    def _fence(self) -> None:
        """Nobody has heard this gateway for a while, so a hold may begin without it."""
        _LOG.warning("the store was not reached for %g s: calls wait", FENCE_SECONDS)
        self._fenced = True
        self._fencing = asyncio.create_task(self._policies.fence())

    async def _unfence(self) -> None:
        """Heard again: do as the store says now."""
        if self._fencing is not None:
            await self._fencing
        rows = await self._store.policies()
        self._policies.adopt(rows, await self._store.now(), afresh=True)
        self._fenced = False
        self._drain_holds()


def _stopped(gateway: GatewayProcess, policy: Policy) -> int | None:
    """How many calls the gateway stopped for the policy's hold. `None`: it has not drained it."""
    for one in gateway.drained:
        if (one.run, one.policy, one.since) == (policy.run, policy.name, policy.held_since):
            return one.stopped
    return None
