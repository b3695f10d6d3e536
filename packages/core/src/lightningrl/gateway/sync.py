"""Hold and drain: how a policy's weights change without a call noticing.

Invariants:
- Between a call's entry into its flight and its exit the policy is not held to the end of a drain, so
  by default every answer is sampled by exactly one version.
- A hold is a lease. When it runs out nothing is released: the weights are unknown, so calls are
  refused until the trainer publishes or releases.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager
from enum import StrEnum

from lightningrl.errors import StoreUnavailable
from lightningrl.gateway.asgi import Refusal
from lightningrl.gateway.interrupt import Interruptible
from lightningrl.schema import AttemptId

_LOG = logging.getLogger(__name__)

GRANT_SECONDS = 1.0
"""Hold time is given back to waiting attempts in grants of this size, each before it is used up."""

Extend = Callable[[list[AttemptId], float], Awaitable[None]]
"""Pushes back the deadlines of attempts by so many seconds."""


class GateState(StrEnum):
    """Whether calls of a policy may start."""

    OPEN = "open"
    HELD = "held"
    """Calls wait."""
    EXPIRED = "expired"
    """The hold ran out: calls are refused."""
    CLOSED = "closed"
    """The gateway shuts down: calls are refused, and that stays so."""


class Drained(Exception):
    """The call was stopped so that the weights can change."""


class Gate:
    """The door before one policy's engines."""

    def __init__(self, name: str, extend: Extend) -> None:
        self.state = GateState.OPEN
        self._name = name
        self._extend = extend
        self._flights: set[Interruptible] = set()
        self._settled = asyncio.Event()
        """Set when nothing is in flight, and when a hold ends: a drain need not wait longer."""
        self._settled.set()
        self._changed = asyncio.Event()
        """Set, and replaced, at every change of `state`."""
        self._waiting: Counter[AttemptId] = Counter()
        self._lease: asyncio.TimerHandle | None = None
        self._granting: asyncio.Task[None] | None = None

    @property
    def in_flight(self) -> int:
        """Calls that an engine works on."""
        return len(self._flights)

    @property
    def waiting(self) -> int:
        """Calls that wait for the end of a hold."""
        return self._waiting.total()

    async def pass_through(self, attempt_id: AttemptId) -> None:
        """Wait while the policy is held. After this, enter `flight` without awaiting anything.

        Raises:
            Refusal: 503, the hold ran out or the gateway shuts down.
        """
        while self.state is GateState.HELD:
            await self._wait(attempt_id)
        if self.state is GateState.EXPIRED:
            raise Refusal(
                503,
                "weights_unknown",
                f"policy {self._name!r} was held for a weight sync that did not finish in time; "
                "its weights are unknown until the trainer publishes or releases it",
                retry_after=5,
            )
        if self.state is GateState.CLOSED:
            raise closing()

    async def _wait(self, attempt_id: AttemptId) -> None:
        changed = self._changed
        self._waiting[attempt_id] += 1
        try:
            if self._waiting[attempt_id] == 1:
                await self._extend([attempt_id], GRANT_SECONDS)
            await changed.wait()
        finally:
            self._waiting[attempt_id] -= 1
            if not self._waiting[attempt_id]:
                del self._waiting[attempt_id]

    @contextmanager
    def flight(self) -> Generator[None]:
        """The time in which an engine works on a call. A drain may end it with `Drained`."""
        block = Interruptible(Drained())
        self._flights.add(block)
        self._settled.clear()
        try:
            with block:
                yield
        finally:
            self._flights.discard(block)
            if not self._flights:
                self._settled.set()

    def hold(self, seconds: float) -> None:
        """Let new calls wait, for at most `seconds` from now; a hold under way gets this lease."""
        if self.state is GateState.CLOSED:
            return
        self._cancel_lease()
        self._lease = asyncio.get_running_loop().call_later(max(0.0, seconds), self.expire)
        self._change(GateState.HELD)
        if self._granting is None:
            self._granting = asyncio.create_task(self._grant())

    async def drain(self, seconds: float) -> int:
        """Wait until no engine works on a call; stop those that take longer than `seconds`.

        Returns how many were stopped; they wait at the gate and are sent again. Returns early when
        the hold ends meanwhile.
        """
        try:
            async with asyncio.timeout(seconds):
                await self._settled.wait()
        except TimeoutError:
            late = list(self._flights)
            for block in late:
                block.interrupt()
            await self._settled.wait()
            return len(late)
        return 0

    def open(self) -> None:
        """Let calls pass."""
        self._cancel_lease()
        self._stop_granting()
        self._change(GateState.OPEN)

    def expire(self) -> None:
        """Refuse calls until somebody says what the weights are."""
        self._cancel_lease()
        self._stop_granting()
        self._change(GateState.EXPIRED)

    def close(self) -> None:
        """Refuse calls, those that wait included; calls in flight go on."""
        self._cancel_lease()
        self._stop_granting()
        self._change(GateState.CLOSED)

    def _change(self, state: GateState) -> None:
        if self.state is GateState.CLOSED:
            return
        self.state = state
        if state in (GateState.OPEN, GateState.EXPIRED):
            self._settled.set()
        elif (
            self._flights
        ):  # of a hold that ended before these had: the next one waits for them too
            self._settled.clear()
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    def _cancel_lease(self) -> None:
        if self._lease is not None:
            self._lease.cancel()
            self._lease = None

    def _stop_granting(self) -> None:
        if self._granting is not None:
            self._granting.cancel()
            self._granting = None

    async def _grant(self) -> None:
        while True:
            await asyncio.sleep(GRANT_SECONDS)
            try:
                await self._extend(list(self._waiting), GRANT_SECONDS)
            except StoreUnavailable as error:  # the next grant is due anyway
                _LOG.warning("hold time of policy %r was not given back: %s", self._name, error)
            except Exception:  # noqa: BLE001 - one failure must not end the grants of a whole hold
                _LOG.exception("hold time of policy %r was not given back", self._name)


def closing() -> Refusal:
    """The refusal of a call by a gateway that shuts down."""
    return Refusal(503, "closing", "the gateway is shutting down", retry_after=2)
