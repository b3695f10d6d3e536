"""A gateway's hold of one policy that lasts as long as it must.

Invariant: the hold is a lease that is renewed while this process lives; once `end` has begun to let calls pass
no renewal can follow.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable

from lightningrl.gateway.control import GatewayClient
from lightningrl.recipe import Recipe

_RENEWALS = 3
"""How often a lease is renewed in its time."""


class Hold:
    """Of a policy of a run; may be begun again after its end."""

    def __init__(
        self,
        recipe: Recipe,
        alias: str,
        gateway: GatewayClient,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Nothing is held yet."""
        self._run = recipe.name
        self._settings = recipe.gateway
        self._alias = alias
        self._gateway = gateway
        self._clock = clock
        self._sent = 0.0
        """When the lease was asked for last, from which it counts: the answer comes after the drain."""
        self._stop = asyncio.Event()
        self._renewal: asyncio.Task[None] | None = None

    async def begin(self) -> None:
        """Hold new calls and drain the others; nothing where that was done already."""
        if self._renewal is None:
            await self._hold()
            self._stop.clear()
            self._renewal = asyncio.create_task(self._renew())

    async def end(self, version: int, *, changed: bool) -> None:
        """Let calls pass, under a version that is a new one or the same as before.

        Raises:
            LightningError: a renewal failed, or the hold had run out; calls stay held or refused.
        """
        self._stop.set()
        renewal, self._renewal = self._renewal, None
        if renewal is not None:
            # Not cancelled: a request that is under way would hold the policy after its end.
            await renewal
        if changed:
            await self._gateway.publish(self._run, self._alias, version)
        else:
            await self._gateway.release(self._run, self._alias)

    def abandon(self) -> None:
        """Renew it no more."""
        if self._renewal is not None:
            self._renewal.cancel()

    async def _renew(self) -> None:
        pause = self._settings.hold_seconds / _RENEWALS
        while not self._stop.is_set():
            due = self._sent + pause - self._clock()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stop.wait(), max(due, 0.0))
                return
            await self._hold()

    async def _hold(self) -> None:
        self._sent = self._clock()
        await self._gateway.hold(
            self._run,
            self._alias,
            hold_seconds=self._settings.hold_seconds,
            drain_seconds=self._settings.drain_seconds,
        )
