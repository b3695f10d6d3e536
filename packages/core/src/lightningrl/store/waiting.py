"""Waiting for a change without polling: whoever waits is woken after the commit that made it.

Ask for `next` *before* looking at the store, then look, then wait: no change can fall in between.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable

from lightningrl.store.session import Wake


class Wakes:
    """One event loop's waiters."""

    def __init__(self) -> None:
        self._futures: dict[Wake, asyncio.Future[None]] = {}

    def next(self, wake: Wake) -> asyncio.Future[None]:
        """Done at the next commit that causes `wake`; shared, so don't cancel it."""
        loop = asyncio.get_running_loop()
        future = self._futures.get(wake)
        if future is None or future.get_loop() is not loop:
            future = self._futures[wake] = loop.create_future()
        return future

    def wake(self, wakes: Iterable[Wake]) -> None:
        """Wake those who wait for any of `wakes`."""
        for wake in wakes:
            future = self._futures.pop(wake, None)
            if future is not None and not future.done():
                future.set_result(None)

    def wake_from_thread(self, wakes: frozenset[Wake]) -> None:
        """`wake`, for a thread that is not the event loop's."""
        loops = {future.get_loop() for future in list(self._futures.values())}
        for loop in loops:
            with contextlib.suppress(RuntimeError):  # a closed loop: nobody waits there any more
                loop.call_soon_threadsafe(self.wake, wakes)


class Patience:
    """What is left of `wait_seconds`."""

    def __init__(self, wait_seconds: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._until = self._loop.time() + wait_seconds

    @property
    def left(self) -> float:
        """Seconds; 0 or less when none are left."""
        return self._until - self._loop.time()

    async def wait(self, change: asyncio.Future[None], look_seconds: float | None = None) -> bool:
        """Wait for `change`, but no longer than `look_seconds`; False, at once, when time is up."""
        if self.left <= 0:
            return False
        timeout = self.left if look_seconds is None else min(self.left, look_seconds)
        await asyncio.wait({change}, timeout=timeout)
        return True
