"""The LightningStore of a server, over HTTP.

A call whose answer got lost is repeated until `retry_seconds` are over; the server makes sure that
this has no effect twice (see `wire.ONCE`). An error of the store arrives as the class that the server
caught.
"""

from __future__ import annotations

import asyncio
import io
import uuid
from collections.abc import Sequence
from datetime import datetime
from typing import Any

import aiohttp
import msgspec

from lightningrl.errors import ConfigError, LightningError, StoreUnavailable, error_from_code
from lightningrl.schema import (
    Attempt,
    AttemptId,
    AttemptState,
    Claim,
    Event,
    Failure,
    GroupId,
    Mode,
    NewRollout,
    Policy,
    Progress,
    Rollout,
    RolloutId,
    TakenGroup,
    Worker,
)
from lightningrl.store import wire
from lightningrl.store.base import Ended, LedgerEntry, RolloutQuery, RunSummary
from lightningrl.store.compression import Compressor, unpack

_ANSWER_SECONDS = 60.0
"""How long a call may take beyond the waiting that it asks for."""

_LONG_BYTES = 1 << 20
_FIRST_PAUSE_SECONDS = 0.05
_LONGEST_PAUSE_SECONDS = 1.0

_encoder = msgspec.msgpack.Encoder()


class _Lost(Exception):
    """The answer got lost, or the server is just stopping: try again."""


class HttpStore:
    """Implements `Store`; made by `connect`."""

    def __init__(self, url: str, key: str | None, retry_seconds: float) -> None:
        """For `connect`, which see."""
        self.url = url.rstrip("/")
        self._retry_seconds = retry_seconds
        self._compressor = Compressor()
        self._session: aiohttp.ClientSession | None = None
        self._closed = False
        self._headers = {"content-type": "application/msgpack", "accept-encoding": "zstd"}
        if key is not None:
            self._headers["authorization"] = f"Bearer {key}"

    @classmethod
    def connect(cls, url: str, *, key: str | None = None, retry_seconds: float = 30.0) -> HttpStore:
        """The store that the server at `url` serves. Nothing is sent before the first call.

        Args:
            url: The server's, as `lightningrl serve` prints it.
            key: The server's admin key, where it has one.
            retry_seconds: How long to try again while the server can't be reached.
        """
        return cls(url, key, retry_seconds)

    async def close(self) -> None:
        """Let go of the connections; closing again changes nothing."""
        self._closed = True
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def _call(self, name: str, /, **arguments: Any) -> Any:
        """Call the method `name` and return its result.

        Raises:
            StoreUnavailable: the server can't be reached, or has no store to write to.
            ConfigError: the server's URL is none.
            LightningError: what the store raised.
        """
        body, headers = self._request(name, arguments)
        patience = _ANSWER_SECONDS + float(arguments.get("wait_seconds", 0.0))
        loop = asyncio.get_running_loop()
        until = loop.time() + self._retry_seconds
        pause = _FIRST_PAUSE_SECONDS
        while True:
            try:
                return await self._try(name, body, headers, patience)
            except _Lost as lost:
                if loop.time() + pause > until:
                    raise StoreUnavailable(
                        f"the store at {self.url} can't be reached ({lost}); "
                        "check that `lightningrl serve` runs there"
                    ) from lost
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)

    def _request(self, name: str, arguments: dict[str, Any]) -> tuple[bytes, dict[str, str]]:
        body = _encoder.encode(arguments)
        headers = dict(self._headers)
        if len(body) > wire.COMPRESS_ABOVE_BYTES:
            body = self._compressor.pack(body)
            headers["content-encoding"] = "zstd"
        if name in wire.ONCE:
            headers[wire.REQUEST_ID_HEADER] = uuid.uuid4().hex
        return body, headers

    async def _try(self, name: str, body: bytes, headers: dict[str, str], patience: float) -> Any:
        timeout = aiohttp.ClientTimeout(total=patience)
        # aiohttp writes a file in pieces, and long bytes at once, at the event loop's expense.
        data = body if len(body) < _LONG_BYTES else io.BytesIO(body)
        url = self.url + wire.PREFIX + name
        try:
            async with self._connected().post(
                url, data=data, headers=headers, timeout=timeout
            ) as response:
                answer = await response.read()
                again = "retry-after" in response.headers
                kind = response.content_type
        except (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError, TimeoutError) as error:
            raise _Lost(str(error) or type(error).__name__) from error
        except aiohttp.InvalidURL as error:
            raise ConfigError(f"{self.url!r} is no URL of a server") from error
        except aiohttp.ClientError as error:
            raise StoreUnavailable(f"{url} is no store: what answers there is no HTTP") from error
        if again:
            raise _Lost("it is stopping")
        if kind != "application/msgpack":
            raise StoreUnavailable(f"{url} is no store: it answered {response.status} with {kind}")
        return self._result(name, answer)

    @staticmethod
    def _result(name: str, answer: bytes) -> Any:
        try:
            decoded = wire.METHODS[name].answer.decode(unpack(answer))
        except msgspec.DecodeError as error:
            raise LightningError(
                f"the server's answer to {name!r} has another form ({error}); "
                "run the same version of LightningRL on both sides"
            ) from error
        if decoded.error is not None:
            raise error_from_code(decoded.error.code, decoded.error.message)
        return decoded.ok

    def _connected(self) -> aiohttp.ClientSession:
        if self._closed:
            raise StoreUnavailable(f"the connection to the store at {self.url} is closed")
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0),
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
            )
        return self._session

    # -- rollouts ------------------------------------------------------------------------------

    async def enqueue(self, rollouts: Sequence[NewRollout]) -> int:
        """See `Store.enqueue`."""
        return await self._call("enqueue", rollouts=rollouts)

    async def claim(
        self,
        worker: str,
        *,
        run: str | None = None,
        limit: int = 1,
        lease_seconds: float = 30.0,
        wait_seconds: float = 0.0,
    ) -> list[Claim]:
        """See `Store.claim`."""
        return await self._call(
            "claim",
            worker=worker,
            run=run,
            limit=limit,
            lease_seconds=lease_seconds,
            wait_seconds=wait_seconds,
        )

    async def heartbeat(
        self, worker: str, attempt_ids: Sequence[AttemptId], *, lease_seconds: float = 30.0
    ) -> list[AttemptId]:
        """See `Store.heartbeat`."""
        return await self._call(
            "heartbeat", worker=worker, attempt_ids=attempt_ids, lease_seconds=lease_seconds
        )

    async def append(self, events: Sequence[Event]) -> None:
        """See `Store.append`."""
        await self._call("append", events=events)

    async def finish(
        self,
        attempt_id: AttemptId,
        state: AttemptState,
        *,
        failure: Failure | None = None,
        output: Any = None,
    ) -> Rollout:
        """See `Store.finish`."""
        return await self._call(
            "finish", attempt_id=attempt_id, state=state, failure=failure, output=output
        )

    async def cancel(self, rollout_ids: Sequence[RolloutId]) -> int:
        """See `Store.cancel`."""
        return await self._call("cancel", rollout_ids=rollout_ids)

    async def expire(self) -> int:
        """See `Store.expire`."""
        return await self._call("expire")

    async def extend(self, attempt_ids: Sequence[AttemptId], seconds: float) -> None:
        """See `Store.extend`."""
        await self._call("extend", attempt_ids=attempt_ids, seconds=seconds)

    async def renew_all_leases(self, lease_seconds: float) -> int:
        """See `Store.renew_all_leases`."""
        return await self._call("renew_all_leases", lease_seconds=lease_seconds)

    # -- reading -------------------------------------------------------------------------------

    async def rollouts(self, query: RolloutQuery) -> list[Rollout]:
        """See `Store.rollouts`."""
        return await self._call("rollouts", query=query)

    async def attempts(self, rollout_ids: Sequence[RolloutId]) -> list[Attempt]:
        """See `Store.attempts`."""
        return await self._call("attempts", rollout_ids=rollout_ids)

    async def attempt(self, attempt_id: AttemptId) -> tuple[Rollout, Attempt]:
        """See `Store.attempt`."""
        return await self._call("attempt", attempt_id=attempt_id)

    async def events(self, attempt_ids: Sequence[AttemptId]) -> list[list[Event]]:
        """See `Store.events`."""
        return await self._call("events", attempt_ids=attempt_ids)

    async def ended(self, run: str, *, after: int = 0, limit: int = 1000) -> list[Ended]:
        """See `Store.ended`."""
        return await self._call("ended", run=run, after=after, limit=limit)

    async def progress(
        self,
        run: str,
        mode: Mode,
        iteration: int,
        *,
        variant: str | None = None,
        seen: int = -1,
        wait_seconds: float = 0.0,
    ) -> Progress:
        """See `Store.progress`."""
        return await self._call(
            "progress",
            run=run,
            mode=mode,
            iteration=iteration,
            variant=variant,
            seen=seen,
            wait_seconds=wait_seconds,
        )

    async def summary(self, run: str) -> RunSummary:
        """See `Store.summary`."""
        return await self._call("summary", run=run)

    async def runs(self) -> list[str]:
        """See `Store.runs`."""
        return await self._call("runs")

    # -- policies and workers ------------------------------------------------------------------

    async def put_policy(self, policy: Policy) -> None:
        """See `Store.put_policy`."""
        await self._call("put_policy", policy=policy)

    async def policies(self, run: str | None = None) -> list[Policy]:
        """See `Store.policies`."""
        return await self._call("policies", run=run)

    async def workers(self, *, seen_within_seconds: float = 30.0) -> list[Worker]:
        """See `Store.workers`."""
        return await self._call("workers", seen_within_seconds=seen_within_seconds)

    # -- the training ledger -------------------------------------------------------------------

    async def take(
        self, run: str, iteration: int, *, min_group: int = 2, skip: Sequence[GroupId] = ()
    ) -> list[TakenGroup]:
        """See `Store.take`."""
        return await self._call(
            "take", run=run, iteration=iteration, min_group=min_group, skip=skip
        )

    async def commit(self, run: str, iteration: int) -> None:
        """See `Store.commit`."""
        await self._call("commit", run=run, iteration=iteration)

    async def roll_back(self, run: str, *, after: int) -> list[int]:
        """See `Store.roll_back`."""
        return await self._call("roll_back", run=run, after=after)

    async def ledger(self, run: str) -> list[LedgerEntry]:
        """See `Store.ledger`."""
        return await self._call("ledger", run=run)

    # -- the store itself ----------------------------------------------------------------------

    async def secret(self) -> bytes:
        """See `Store.secret`."""
        return await self._call("secret")

    async def now(self) -> datetime:
        """See `Store.now`."""
        return await self._call("now")
