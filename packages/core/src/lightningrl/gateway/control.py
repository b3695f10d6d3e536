"""Policy control: how the trainer registers, holds and publishes policies at a gateway.

The same structs are what `control_routes` reads and writes, so the two can't disagree.
"""

from __future__ import annotations

import asyncio
import time
from types import TracebackType
from typing import Any, Self, TypeVar
from urllib.parse import quote

import aiohttp
import msgspec

from lightningrl.errors import ConfigError, EngineError, error_from_code
from lightningrl.schema import Policy

CONTROL_PREFIX = "/gateway/v1"

_RETRY_SECONDS = 30.0
"""How long a gateway may be away, as while it is started again; each request is idempotent."""
_RETRY_PAUSE_SECONDS = 0.2
_ANSWER_SECONDS = 30.0
"""What a request may take beyond the drain that it asks for."""

T = TypeVar("T")


class Hold(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Body of `.../hold`."""

    hold_seconds: float
    """The lease: how long calls wait at most before they are refused."""
    drain_seconds: float
    """How long running calls may go on before they are stopped, to be sent again later."""


class Held(msgspec.Struct, frozen=True):
    """Answer of `.../hold`: no engine works on a call of the policy any more."""

    version: int
    stopped: int
    """Calls that were stopped and wait to be sent again."""


class Publish(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Body of `.../publish`."""

    version: int


class EndpointStatus(msgspec.Struct, frozen=True):
    """One engine, as calls and checks found it."""

    url: str
    failures: int
    """Failed calls and checks since the last answer; 0 is healthy."""
    up: bool = True
    """Whether it is in rotation."""


class PolicyStatus(msgspec.Struct, frozen=True):
    """One policy at one gateway."""

    run: str
    name: str
    version: int
    state: str
    """`open`; `held`: calls wait; `expired`: the hold ran out, calls are refused; `closed`."""
    in_flight: int
    """Calls that an engine works on."""
    waiting: int
    """Calls that wait for the end of the hold."""
    endpoints: tuple[EndpointStatus, ...]

    @property
    def held(self) -> bool:
        """Whether new calls don't pass."""
        return self.state != "open"


class Refused(msgspec.Struct, frozen=True):
    """What one gateway has refused since its start; what is known to be of an attempt is in that one's log."""

    unidentified: int
    """Model calls that nothing showed to be of any attempt, of whichever run."""
    origins: dict[str, int] = {}
    """Where they came from, see `Origin` -> how many. Empty: an earlier server does not say."""

    @property
    def by_origin(self) -> dict[str, int]:
        """The same; under an empty text those of which only the number is known."""
        return self.origins or {"": self.unidentified}


class ErrorDetail(msgspec.Struct, frozen=True):
    """What went wrong."""

    message: str
    code: str


class ErrorBody(msgspec.Struct, frozen=True):
    """An error answer."""

    error: ErrorDetail


class GatewayClient:
    """Policy control over HTTP.

    `url` is the server's, without a path; `key` its admin key, `None` where it has none. Every method
    raises the `LightningError` that the gateway raised, or `EngineError` where it can't be reached.
    """

    def __init__(self, url: str, key: str | None = None) -> None:
        self._base = url.rstrip("/") + CONTROL_PREFIX
        self._headers = {} if key is None else {"authorization": f"Bearer {key}"}
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def register(self, policy: Policy) -> Policy:
        """Create or replace a policy; a hold that is in force stays in force.

        Raises:
            ConfigError: it has no endpoint or no name.
            Conflict: its version is lower than the stored one, or another policy of the run
                answers for the same model or agent name.
        """
        return await self._post(_path(policy.run, policy.name), policy, Policy)

    async def hold(self, run: str, name: str, *, hold_seconds: float, drain_seconds: float) -> Held:
        """Let new calls wait; return when running ones have ended or were stopped.

        Raises:
            NotFound: there is no such policy.
            ConfigError: the hold would not outlast the drain.
            Conflict: the hold was released, or ran out, before the drain was done.
        """
        body = Hold(hold_seconds=hold_seconds, drain_seconds=drain_seconds)
        seconds = drain_seconds + _ANSWER_SECONDS
        return await self._post(_path(run, name) + "/hold", body, Held, seconds=seconds)

    async def publish(self, run: str, name: str, version: int) -> Policy:
        """The engines have the weights of `version`: let calls pass under it.

        Raises:
            NotFound: there is no such policy.
            Conflict: `version` is not higher than the present one, or calls are still in flight.
        """
        return await self._post(_path(run, name) + "/publish", Publish(version), Policy)

    async def release(self, run: str, name: str) -> Policy:
        """The engines still have the weights of the present version: let calls pass.

        Raises:
            NotFound: there is no such policy.
        """
        return await self._post(_path(run, name) + "/release", {}, Policy)

    async def status(self) -> list[PolicyStatus]:
        """All policies at the gateway."""
        return await self._request("GET", "/status", None, list[PolicyStatus], _ANSWER_SECONDS)

    async def refused(self) -> Refused:
        """What the gateway has refused."""
        return await self._request("GET", "/refused", None, Refused, _ANSWER_SECONDS)

    async def _post(
        self, path: str, body: Any, answer: type[T], *, seconds: float = _ANSWER_SECONDS
    ) -> T:
        return await self._request("POST", path, msgspec.json.encode(body), answer, seconds)

    async def _request(
        self, method: str, path: str, body: bytes | None, answer: type[T], seconds: float
    ) -> T:
        if self._session is None:
            self._session = aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar())
        timeout = aiohttp.ClientTimeout(total=seconds)
        url = self._base + path
        give_up = time.monotonic() + _RETRY_SECONDS
        while True:
            try:
                async with self._session.request(
                    method, url, data=body, headers=self._headers, timeout=timeout
                ) as response:
                    text = await response.read()
                break
            except aiohttp.InvalidURL as error:
                raise ConfigError(f"{url!r} is no URL of a gateway") from error
            except (aiohttp.ClientError, TimeoutError) as error:
                if time.monotonic() > give_up:
                    raise EngineError(
                        f"the gateway at {url!r} can't be reached: {error!r}; check that"
                        " `lightningrl serve` runs there"
                    ) from error
                await asyncio.sleep(_RETRY_PAUSE_SECONDS)
        if response.status != 200:
            raise _error(text, response.status, url)
        return msgspec.json.decode(text, type=answer)


def _path(run: str, name: str) -> str:
    return f"/policies/{quote(run, safe='')}/{quote(name, safe='')}"


def _error(text: bytes, status: int, url: str) -> Exception:
    try:
        detail = msgspec.json.decode(text, type=ErrorBody).error
    except msgspec.DecodeError:
        return EngineError(f"{url!r} answered {status}, and not as a gateway does: {text[:200]!r}")
    return error_from_code(detail.code, detail.message)
