"""The way to the engines: sticky endpoints, failover, bounded retries.

Invariant: a call is sent again only while nobody has seen an answer to it, so that a retry can't be
counted twice; how often is part of the record.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Sequence

import aiohttp
import msgspec

from lightningrl.clock import Clock
from lightningrl.gateway.asgi import Refusal
from lightningrl.gateway.limits import GatewayLimits
from lightningrl.schema import Endpoint, RolloutId

_TRY_AGAIN = frozenset({502, 503, 504})
_KEEP_ALIVE_SECONDS = 4.0  # below uvicorn's and vLLM's 5 s: the engine never closes first
_READ_BUFFER = 2**18


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


class Health:
    """Which endpoints failed lately. Passive: calls find out, nothing is polled."""

    def __init__(self, clock: Clock, limits: GatewayLimits) -> None:
        self._clock = clock
        self._limits = limits
        self._failures: dict[str, int] = {}
        self._avoided_until: dict[str, float] = {}

    def failed(self, url: str) -> None:
        """Avoid `url` for a while, the longer the more often it failed in a row."""
        count = self._failures[url] = self._failures.get(url, 0) + 1
        pause = self._limits.backoff_seconds * 2.0 ** min(count, 16)
        until = self._clock.monotonic() + min(pause, self._limits.backoff_limit_seconds)
        self._avoided_until[url] = until

    def answered(self, url: str) -> None:
        """Trust `url` again."""
        if self._failures.pop(url, None):
            self._avoided_until.pop(url, None)

    def failures(self, url: str) -> int:
        """Failures in a row; 0 is healthy."""
        return self._failures.get(url, 0)

    def choose(self, ranked: Sequence[Endpoint]) -> Endpoint:
        """The first endpoint that is not avoided, else the one avoided for the shortest time."""
        if len(ranked) == 1 or not self._avoided_until:
            return ranked[0]
        now = self._clock.monotonic()
        waits = [max(0.0, self._avoided_until.get(one.url, 0.0) - now) for one in ranked]
        return ranked[waits.index(min(waits))]


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
    """A connection pool towards all engines."""

    def __init__(self, clock: Clock, limits: GatewayLimits) -> None:
        self.health = Health(clock, limits)
        self._limits = limits
        self._session: aiohttp.ClientSession | None = None

    async def start(self) -> None:
        """Open the pool."""
        # aiohttp's own limit is 100 connections, which throttles a thousand agents to 99 calls/s.
        connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=_KEEP_ALIVE_SECONDS)
        self._session = aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(
                total=self._limits.upstream_seconds, sock_connect=self._limits.connect_seconds
            ),
            read_bufsize=_READ_BUFFER,
        )

    async def close(self) -> None:
        """Close all connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def post(
        self,
        ranked: Sequence[Endpoint],
        path: str,
        body: bytes,
        headers: dict[str, str],
        sending: Sending,
    ) -> tuple[int, bytes]:
        """Send `body` to the first endpoint that answers; return status and body of its answer.

        Raises:
            Refusal: 502, none answered; 504, one took longer than `upstream_seconds`.
        """
        for retry in range(self._limits.upstream_retries + 1):
            if retry:
                await asyncio.sleep(self._backoff(retry))
            endpoint = self.health.choose(ranked)
            sending.endpoint, sending.tries = endpoint.url, sending.tries + 1
            last = retry == self._limits.upstream_retries
            try:
                status, answer = await self._send(endpoint, path, body, headers)
            except aiohttp.ClientError as error:
                self.health.failed(endpoint.url)
                if last:
                    raise _unreachable(endpoint, sending, error) from error
                continue
            if status not in _TRY_AGAIN:
                self.health.answered(endpoint.url)
                return status, answer
            self.health.failed(endpoint.url)
            if last:
                return status, answer
        raise AssertionError("the last try returns or raises")

    def _backoff(self, retry: int) -> float:
        if retry == 1:  # a kept-alive connection that the engine had closed: nothing is wrong
            return 0.0
        pause = self._limits.backoff_seconds * 2.0 ** (retry - 2)
        return min(pause, self._limits.backoff_limit_seconds)

    async def _send(
        self, endpoint: Endpoint, path: str, body: bytes, headers: dict[str, str]
    ) -> tuple[int, bytes]:
        if self._session is None:
            raise RuntimeError("the gateway was not started: await Gateway.start() first")
        if endpoint.key is not None:
            headers = {**headers, "authorization": f"Bearer {endpoint.key}"}
        url = endpoint.url.rstrip("/") + path
        try:
            async with self._session.post(
                url, data=body, headers=headers, allow_redirects=False
            ) as response:
                return response.status, await response.read()
        except aiohttp.ConnectionTimeoutError:
            raise
        except TimeoutError as error:
            raise Refusal(
                504,
                "engine_timeout",
                f"engine {endpoint.url!r} did not answer within {self._limits.upstream_seconds:g} s"
                " (GatewayLimits.upstream_seconds)",
            ) from error
        except aiohttp.InvalidURL as error:
            raise Refusal(502, "engine_failed", f"{endpoint.url!r} is no engine's URL") from error


def _unreachable(endpoint: Endpoint, sending: Sending, error: Exception) -> Refusal:
    return Refusal(
        502,
        "engine_failed",
        f"engine {endpoint.url!r} could not be reached or broke off its answer, after"
        f" {sending.tries} tries: {error!r}; check that it runs and that its URL is right",
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

    What the engine says of the request (too long a prompt, say) passes through with its code.
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
    retry_after = 2.0 if status == 429 or status >= 500 else None
    return Refusal(status, code, error.message, param=error.param, retry_after=retry_after)
