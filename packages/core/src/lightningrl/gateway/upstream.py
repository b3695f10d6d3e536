"""The way to the engines: sticky endpoints, failover, bounded retries.

Invariant: a call is sent again only while nobody has seen an answer to it, so that a retry can't be
counted twice; how often is part of the record.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import Sequence

import msgspec

from lightningrl.gateway.asgi import CONTEXT_EXCEEDED, Refusal
from lightningrl.gateway.connections import Broken, Connections
from lightningrl.gateway.dialects.engine_request import BEYOND_CONTEXT
from lightningrl.gateway.health import Health, HealthChecks, url_at
from lightningrl.gateway.limits import GatewayLimits
from lightningrl.machine.clock import Clock
from lightningrl.schema import Endpoint, RolloutId

_TRY_AGAIN = frozenset({502, 503, 504})
_KEEP_ALIVE_SECONDS = 4.0  # below uvicorn's and vLLM's 5 s: the engine never closes first


class Sending:
    """How the sending of one call went so far; outlives a drain, after which it goes on."""

    def __init__(self) -> None:
        self.endpoint = ""
        """URL of the engine that was tried last; empty before the first."""
        self.tries = 0
        """How often the call was sent."""

    @property
    def retries(self) -> int:
        """How often the call was sent again."""
        return max(0, self.tries - 1)


def rank(endpoints: Sequence[Endpoint], rollout_id: RolloutId) -> Sequence[Endpoint]:
    """The endpoints in a rollout's own order (rendezvous hashing).

    A rollout keeps to the first, whose prefix cache knows it; when one endpoint goes away, only its
    rollouts move.
    """
    if len(endpoints) == 1:
        return endpoints

    def weight(endpoint: Endpoint) -> bytes:
        text = f"{endpoint.url}\x1f{rollout_id}"
        return hashlib.blake2b(text.encode(), digest_size=8).digest()

    return sorted(endpoints, key=weight)


class Upstream:
    """The way to all engines."""

    def __init__(self, clock: Clock, limits: GatewayLimits) -> None:
        self.health = Health(clock, limits)
        self._checks = HealthChecks(self.health, limits)
        self._limits = limits
        self._ending = asyncio.Event()
        """Set: nobody waits for an engine that is not there."""
        self._connections = Connections(
            connect_seconds=limits.connect_seconds,
            answer_seconds=limits.upstream_seconds,
            idle_seconds=_KEEP_ALIVE_SECONDS,
        )

    def start(self) -> None:
        """Begin to look after the endpoints' health."""
        self._checks.start()

    def end_retries(self) -> None:
        """Send calls that wait for their next try a last time now, and the others not again."""
        self._ending.set()

    async def close(self) -> None:
        """Close all connections."""
        await self._checks.close()
        self._connections.close()

    async def post(
        self,
        ranked: Sequence[Endpoint],
        path: str,
        body: bytes,
        headers: dict[str, str],
        sending: Sending,
        *,
        beside: bool = False,
    ) -> tuple[int, bytes]:
        """Send `body` to the first endpoint that answers; return status and body of its answer.

        Args:
            ranked: The endpoints, the best first.
            path: Route below the endpoints' base URL.
            body: JSON.
            headers: Beside the endpoint's key.
            sending: Is told how it goes.
            beside: Whether the route is not below the base URL but at the server's root.

        Raises:
            Refusal: 502, none answered; 504, one took longer than `upstream_seconds`.
        """
        for retry in range(self._limits.upstream_retries + 1):
            if retry:
                await self._pause(self._backoff(retry))
            endpoint = self.health.choose(ranked)
            sending.endpoint, sending.tries = endpoint.url, sending.tries + 1
            url = url_at(endpoint.url, path) if beside else endpoint.url.rstrip("/") + path
            last = retry == self._limits.upstream_retries or self._ending.is_set()
            try:
                if len(ranked) == 1:
                    status, answer = await self._send(endpoint, url, body, headers)
                else:
                    with self.health.waiting(endpoint):
                        status, answer = await self._send(endpoint, url, body, headers)
            except Broken as error:
                self.health.failed(endpoint.url, str(error))
                if last:
                    raise _unreachable(endpoint, sending, error) from error
                continue
            if status not in _TRY_AGAIN:
                self.health.answered(endpoint.url)
                return status, answer
            self.health.failed(endpoint.url, f"it answered {status}")
            if last:
                return status, answer
        raise AssertionError("the last try returns or raises")

    async def _pause(self, seconds: float) -> None:
        """Wait, but for nobody once retries have ended."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._ending.wait()

    def _backoff(self, retry: int) -> float:
        if retry == 1:  # a kept-alive connection that the engine had closed: nothing is wrong
            return 0.0
        pause = self._limits.backoff_seconds * 2.0 ** (retry - 2)
        return min(pause, self._limits.backoff_limit_seconds)

    async def _send(
        self, endpoint: Endpoint, url: str, body: bytes, headers: dict[str, str]
    ) -> tuple[int, bytes]:
        if endpoint.key is not None:
            headers = {**headers, "authorization": f"Bearer {endpoint.key}"}
        try:
            return await self._connections.post(url, body, headers)
        except TimeoutError as error:
            raise Refusal(
                504,
                "engine_timeout",
                f"engine {endpoint.url!r} did not answer within {self._limits.upstream_seconds:g} s"
                " (LIGHTNINGRL_GATEWAY_UPSTREAM_SECONDS at the server)",
            ) from error
        except ValueError as error:
            raise Refusal(502, "engine_failed", f"{endpoint.url!r} is no engine's URL") from error


def _unreachable(endpoint: Endpoint, sending: Sending, error: Exception) -> Refusal:
    return Refusal(
        502,
        "engine_failed",
        f"engine {endpoint.url!r} could not be reached or broke off its answer, after"
        f" {sending.tries} tries: {error}; check that it runs and that its URL is right",
        retry_after=2,
    )


class _EngineError(msgspec.Struct, frozen=True):
    message: str
    code: str | int | None = None
    param: str | None = None


class _EngineErrorBody(msgspec.Struct, frozen=True):
    error: _EngineError


_ENGINE_FAULTS = frozenset({401, 403, 404})
"""Statuses by which an engine refuses the gateway, not the agent."""


def refusal_of_engine(status: int, body: bytes, endpoint: str) -> Refusal:
    """An engine's error answer as the agent gets it.

    What the engine says of the request passes through with its code; that the context is full has the service's code
    whatever the engine, since clients act on it.
    """
    try:
        error = msgspec.json.decode(body, type=_EngineErrorBody).error
    except msgspec.DecodeError:
        error = _EngineError(body[:500].decode(errors="replace"))
    if status in _ENGINE_FAULTS or status < 400:
        return Refusal(
            502,
            "engine_failed",
            f"engine {endpoint!r} answered {status} to the gateway: {error.message}; check the"
            " policy's endpoint URL and key, and that the engine serves the policy by its name",
        )
    code = error.code if isinstance(error.code, str) else "engine_refused"
    if status == 400 and BEYOND_CONTEXT in error.message:  # vLLM has no code for it
        code = CONTEXT_EXCEEDED
    retry_after = 2.0 if status == 429 or status >= 500 else None
    return Refusal(status, code, error.message, param=error.param, retry_after=retry_after)
