"""Which engines live: calls find out, and endpoints in use are asked.

Invariants: an endpoint that failed `health_failures` times in a row, checks and calls counted alike, gets
no call while another one of its policy is in rotation, until a check or a call succeeds; a call that
waits for it then goes to another one at once. Endpoints of policies that nobody calls are not asked.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from urllib.parse import urlsplit

from lightningrl.gateway.connections import Broken, Connections
from lightningrl.gateway.interrupt import Interruptible
from lightningrl.gateway.limits import GatewayLimits
from lightningrl.machine.clock import Clock
from lightningrl.schema import Endpoint

_LOG = logging.getLogger(__name__)

IN_USE_SECONDS = 120.0
"""How long after a call that it could have got an endpoint is asked."""


class _State:
    """What is known of one endpoint."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self.failures = 0
        """In a row."""
        self.avoided_until = 0.0
        """Monotonic seconds: after a call failed, others are preferred so long."""
        self.wanted_at = 0.0
        """Monotonic seconds when a call last could have gone there."""
        self.flights: set[Interruptible] = set()
        """Calls that wait for it and could go elsewhere."""


class Health:
    """What is known of all endpoints."""

    def __init__(self, clock: Clock, limits: GatewayLimits) -> None:
        self._clock = clock
        self._limits = limits
        self._states: dict[str, _State] = {}

    def failed(self, url: str, reason: str) -> None:
        """A call or a check failed: avoid `url` for a while, take it out of rotation at the limit."""
        state = self._states.get(url)
        if state is None:
            return
        was_up = self._is_up(state)
        state.failures += 1
        pause = self._limits.backoff_seconds * 2.0 ** min(state.failures, 16)
        pause = min(pause, self._limits.backoff_limit_seconds)
        state.avoided_until = self._clock.monotonic() + pause
        if was_up and not self._is_up(state):
            _LOG.warning(
                "endpoint %s is out of rotation after %d failures: %s", url, state.failures, reason
            )
            for flight in list(state.flights):
                flight.interrupt()

    def answered(self, url: str) -> None:
        """A call or a check got an answer: trust `url` again."""
        state = self._states.get(url)
        if state is None or not state.failures:
            return
        if not self._is_up(state):
            _LOG.warning("endpoint %s answers again and is back in rotation", url)
        state.failures = 0
        state.avoided_until = 0.0

    def failures(self, url: str) -> int:
        """Failures in a row; 0 is healthy."""
        state = self._states.get(url)
        return 0 if state is None else state.failures

    def is_up(self, url: str) -> bool:
        """Whether `url` is in rotation; one that nobody called yet is."""
        state = self._states.get(url)
        return state is None or self._is_up(state)

    def _is_up(self, state: _State) -> bool:
        return not self._limits.health_seconds or state.failures < self._limits.health_failures

    def choose(self, ranked: Sequence[Endpoint]) -> Endpoint:
        """The first endpoint in rotation that is not avoided, else what comes nearest to that."""
        now = self._clock.monotonic()
        states = [self._wanted(one, now) for one in ranked]
        if len(ranked) == 1:
            return ranked[0]
        badness = [(not self._is_up(one), max(0.0, one.avoided_until - now)) for one in states]
        return ranked[badness.index(min(badness))]

    def _wanted(self, endpoint: Endpoint, now: float) -> _State:
        state = self._states.get(endpoint.url)
        if state is None:
            state = self._states[endpoint.url] = _State(endpoint)
        state.endpoint, state.wanted_at = endpoint, now
        return state

    @contextmanager
    def waiting(self, endpoint: Endpoint) -> Generator[None]:
        """The time in which a call that could go elsewhere waits for `endpoint`, which was chosen.

        Raises:
            Broken: the endpoint went out of rotation meanwhile.
        """
        flights = self._states[endpoint.url].flights
        with Interruptible(Broken("its health checks fail")) as block:
            flights.add(block)
            try:
                yield
            finally:
                flights.discard(block)

    def in_use(self) -> list[Endpoint]:
        """Endpoints to be asked; those that nobody wanted for long are forgotten."""
        oldest = self._clock.monotonic() - IN_USE_SECONDS
        for url, state in list(self._states.items()):
            if state.wanted_at < oldest and not state.flights:
                del self._states[url]
        return [state.endpoint for state in self._states.values()]


class HealthChecks:
    """Asks the endpoints in use, all at once, every `health_seconds`."""

    def __init__(self, health: Health, limits: GatewayLimits) -> None:
        """Prepare; nobody is asked before `start`."""
        self._health = health
        self._limits = limits
        self._connections = Connections(
            connect_seconds=limits.health_timeout_seconds,
            answer_seconds=limits.health_timeout_seconds,
            idle_seconds=0.0,  # a check that finds a connection open has not found a host that listens
        )
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to ask."""
        if self._limits.health_seconds:
            self._task = asyncio.create_task(self._keep_asking())

    async def close(self) -> None:
        """Ask no more."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self._connections.close()

    async def _keep_asking(self) -> None:
        while True:
            await asyncio.sleep(self._limits.health_seconds)
            try:
                await asyncio.gather(*(self._ask(one) for one in self._health.in_use()))
            except Exception:  # noqa: BLE001 - whatever it is, the next round is due anyway
                _LOG.exception("the health of engines could not be asked for")

    async def _ask(self, endpoint: Endpoint) -> None:
        headers = {} if endpoint.key is None else {"authorization": f"Bearer {endpoint.key}"}
        url = url_at(endpoint.url, self._limits.health_path)
        try:
            async with asyncio.timeout(self._limits.health_timeout_seconds):
                status, _ = await self._connections.get(url, headers)
        except (Broken, TimeoutError, ValueError) as error:
            reason = str(error) or f"no answer within {self._limits.health_timeout_seconds:g} s"
            self._health.failed(endpoint.url, f"{url}: {reason}")
            return
        if status >= 500:
            self._health.failed(endpoint.url, f"{url} answered {status}")
        else:
            self._health.answered(endpoint.url)


def url_at(base: str, path: str) -> str:
    """A URL of the endpoint with base URL `base`: at the server's root if `path` begins with a slash, else below it."""
    if path.startswith("/"):
        parts = urlsplit(base)
        return f"{parts.scheme}://{parts.netloc}{path}"
    return f"{base.rstrip('/')}/{path}"
