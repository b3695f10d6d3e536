"""The LightningStore of a server, over HTTP.

A call whose answer got lost is repeated until `retry_seconds` are over; the server makes sure that
this has no effect twice (see `wire.ONCE`). An error of the store arrives as the class that the server
caught.
"""

from __future__ import annotations

import asyncio
import io
from collections.abc import Sequence
from datetime import datetime
from typing import Any

import aiohttp
import msgspec

from lightningrl import settings
from lightningrl.errors import ConfigError, LightningError, StoreUnavailable, error_from_code
from lightningrl.schema import (
    Attempt,
    AttemptId,
    AttemptState,
    CallEvent,
    CallLimits,
    Claim,
    DrainedHold,
    Event,
    Failure,
    GatewayProcess,
    GroupId,
    Mode,
    NewRollout,
    Policy,
    Progress,
    Resource,
    Rollout,
    RolloutId,
    TakenGroup,
    Worker,
)
from lightningrl.store import wire
from lightningrl.store.compression import Compressor, Damaged, unpack
from lightningrl.store.records import (
    Ended,
    GroupQuery,
    GroupSummary,
    LedgerEntry,
    Retention,
    RolloutDump,
    RolloutQuery,
    RunStatistics,
    RunSummary,
    TaskSummary,
)

_ANSWER_SECONDS = 60.0
"""How long a call may take beyond the waiting that it asks for."""

_LONG_BYTES = 1 << 20
_FIRST_PAUSE_SECONDS = 0.05
_LONGEST_PAUSE_SECONDS = 1.0


class _Lost(Exception):
    """The answer got lost, or the server is just stopping: try again."""


class HttpStore:
    """Implements `Store`; made by `connect`."""

    shared: bool = True
    """See `Store.shared`: others write through the same server."""

    def __init__(self, url: str, key: str | None, retry_seconds: float) -> None:
        """For `connect`, which see."""
        self.url = url.rstrip("/")
        self._retry_seconds = retry_seconds
        self._compressor = Compressor()
        self._session: aiohttp.ClientSession | None = None
        self._closed = False
        self._headers = {} if key is None else {"authorization": f"Bearer {key}"}

    @classmethod
    def connect(
        cls, url: str, *, key: str | None = None, retry_seconds: float | None = None
    ) -> HttpStore:
        """The store that the server at `url` serves. Nothing is sent before the first call.

        Args:
            url: The server's, as `lightningrl serve` prints it.
            key: The server's admin key, where it has one.
            retry_seconds: How long to try again while the server can't be reached; the setting
                `LIGHTNINGRL_RETRY_SECONDS` unless given.
        """
        patience = settings.retry_seconds() if retry_seconds is None else retry_seconds
        return cls(url, key, patience)

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
        body, headers = wire.packed_call(name, arguments, self._compressor)
        headers |= self._headers
        patience = _ANSWER_SECONDS + float(arguments.get("wait_seconds", 0.0))
        loop = asyncio.get_running_loop()
        until: float | None = None
        pause = _FIRST_PAUSE_SECONDS
        while True:
            try:
                return await self._try(name, body, headers, patience)
            except _Lost as lost:
                # From the first loss on: what takes long may have taken longer than that.
                until = loop.time() + self._retry_seconds if until is None else until
                if loop.time() + pause > until:
                    raise StoreUnavailable(
                        f"the store at {self.url} can't be reached ({lost}); "
                        "check that `lightningrl serve` runs there"
                    ) from lost
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)

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
        except TimeoutError as error:
            raise _Lost(f"it did not answer within {patience:g} s") from error
        except (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError) as error:
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
        except (msgspec.DecodeError, Damaged) as error:
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
        rollout_ids: Sequence[RolloutId] | None = None,
        limit: int = 1,
        lease_seconds: float = 30.0,
        wait_seconds: float = 0.0,
    ) -> list[Claim]:
        """See `Store.claim`."""
        return await self._call(
            "claim",
            worker=worker,
            run=run,
            rollout_ids=rollout_ids,
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

    async def append(self, events: Sequence[Event], *, limits: CallLimits | None = None) -> None:
        """See `Store.append`."""
        # Left out where there are none, so that an older server can be written to.
        given = {} if limits is None else {"limits": limits}
        await self._call("append", events=events, **given)

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

    async def retry(self, rollout_ids: Sequence[RolloutId]) -> int:
        """See `Store.retry`."""
        return await self._call("retry", rollout_ids=rollout_ids)

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

    async def groups(self, query: GroupQuery) -> list[GroupSummary]:
        """See `Store.groups`."""
        return await self._call("groups", query=query)

    async def tasks(self, query: GroupQuery) -> list[TaskSummary]:
        """See `Store.tasks`."""
        return await self._call("tasks", query=query)

    async def attempts(self, rollout_ids: Sequence[RolloutId]) -> list[Attempt]:
        """See `Store.attempts`."""
        return await self._call("attempts", rollout_ids=rollout_ids)

    async def attempt(self, attempt_id: AttemptId) -> tuple[Rollout, Attempt]:
        """See `Store.attempt`."""
        return await self._call("attempt", attempt_id=attempt_id)

    async def events(self, attempt_ids: Sequence[AttemptId]) -> list[list[Event]]:
        """See `Store.events`."""
        return await self._call("events", attempt_ids=attempt_ids)

    async def calls(self, attempt_id: AttemptId, *, above: int = 0) -> list[CallEvent]:
        """See `Store.calls`."""
        return await self._call("calls", attempt_id=attempt_id, above=above)

    async def ended(self, run: str, *, after: int = 0, limit: int = 1000) -> list[Ended]:
        """See `Store.ended`."""
        return await self._call("ended", run=run, after=after, limit=limit)

    async def wait(
        self,
        rollout_ids: Sequence[RolloutId] = (),
        *,
        group_ids: Sequence[GroupId] = (),
        wait_seconds: float = 0.0,
    ) -> list[Rollout]:
        """See `Store.wait`."""
        return await self._call(
            "wait", rollout_ids=rollout_ids, group_ids=group_ids, wait_seconds=wait_seconds
        )

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

    async def statistics(
        self, run: str, *, mode: Mode | None = None, window_seconds: float = 60.0
    ) -> RunStatistics:
        """See `Store.statistics`."""
        return await self._call("statistics", run=run, mode=mode, window_seconds=window_seconds)

    async def runs(self) -> list[str]:
        """See `Store.runs`."""
        return await self._call("runs")

    # -- resources -----------------------------------------------------------------------------

    async def put_resource(
        self, run: str, name: str, value: Any, *, ident: str | None = None
    ) -> Resource:
        """See `Store.put_resource`."""
        return await self._call("put_resource", run=run, name=name, value=value, ident=ident)

    async def resource(self, run: str, name: str, *, version: int | None = None) -> Resource:
        """See `Store.resource`."""
        return await self._call("resource", run=run, name=name, version=version)

    async def resources(self, run: str, *, name: str | None = None) -> list[Resource]:
        """See `Store.resources`."""
        return await self._call("resources", run=run, name=name)

    # -- policies and workers ------------------------------------------------------------------

    async def put_policy(self, policy: Policy, *, if_was: Policy | None = None) -> None:
        """See `Store.put_policy`."""
        await self._call("put_policy", policy=policy, if_was=if_was)

    async def policies(
        self,
        run: str | None = None,
        *,
        seen: Sequence[Policy] | None = None,
        wait_seconds: float = 0.0,
    ) -> list[Policy]:
        """See `Store.policies`."""
        return await self._call("policies", run=run, seen=seen, wait_seconds=wait_seconds)

    async def see_gateway(self, gateway: str, drained: Sequence[DrainedHold] = ()) -> None:
        """See `Store.see_gateway`."""
        await self._call("see_gateway", gateway=gateway, drained=drained)

    async def forget_gateway(self, gateway: str) -> None:
        """See `Store.forget_gateway`."""
        await self._call("forget_gateway", gateway=gateway)

    async def gateways(
        self,
        *,
        seen_within_seconds: float,
        seen: Sequence[GatewayProcess] | None = None,
        wait_seconds: float = 0.0,
    ) -> list[GatewayProcess]:
        """See `Store.gateways`."""
        return await self._call(
            "gateways",
            seen_within_seconds=seen_within_seconds,
            seen=seen,
            wait_seconds=wait_seconds,
        )

    async def workers(self, *, seen_within_seconds: float = 30.0) -> list[Worker]:
        """See `Store.workers`."""
        return await self._call("workers", seen_within_seconds=seen_within_seconds)

    # -- the training ledger -------------------------------------------------------------------

    async def give_live(
        self, run: str, iteration: int, rollout_ids: Sequence[RolloutId]
    ) -> list[RolloutId]:
        """See `Store.give_live`."""
        return await self._call("give_live", run=run, iteration=iteration, rollout_ids=rollout_ids)

    async def take(
        self,
        run: str,
        iteration: int,
        *,
        min_group: int = 2,
        skip: Sequence[GroupId] = (),
        failure_reward: float | None = None,
    ) -> list[TakenGroup]:
        """See `Store.take`."""
        return await self._call(
            "take",
            run=run,
            iteration=iteration,
            min_group=min_group,
            skip=skip,
            failure_reward=failure_reward,
        )

    async def commit(self, run: str, iteration: int) -> None:
        """See `Store.commit`."""
        await self._call("commit", run=run, iteration=iteration)

    async def roll_back(self, run: str, *, after: int) -> list[int]:
        """See `Store.roll_back`."""
        return await self._call("roll_back", run=run, after=after)

    async def ledger(
        self, run: str, *, iteration: int | None = None, group_id: GroupId | None = None
    ) -> list[LedgerEntry]:
        """See `Store.ledger`."""
        return await self._call("ledger", run=run, iteration=iteration, group_id=group_id)

    # -- deletion ------------------------------------------------------------------------------

    async def delete_rollouts(self, rollout_ids: Sequence[RolloutId]) -> int:
        """See `Store.delete_rollouts`."""
        return await self._call("delete_rollouts", rollout_ids=rollout_ids)

    async def delete_run(self, run: str) -> int:
        """See `Store.delete_run`."""
        return await self._call("delete_run", run=run)

    async def retain(self, rule: Retention) -> int:
        """See `Store.retain`."""
        return await self._call("retain", rule=rule)

    # -- moving a run --------------------------------------------------------------------------

    async def dump(self, run: str, *, after: int = 0, limit: int = 100) -> list[RolloutDump]:
        """See `Store.dump`."""
        return await self._call("dump", run=run, after=after, limit=limit)

    async def load(
        self,
        *,
        rollouts: Sequence[RolloutDump] = (),
        completed: Sequence[RolloutId] = (),
        resources: Sequence[Resource] = (),
        ledger: Sequence[LedgerEntry] = (),
    ) -> int:
        """See `Store.load`."""
        return await self._call(
            "load", rollouts=rollouts, completed=completed, resources=resources, ledger=ledger
        )

    # -- the store itself ----------------------------------------------------------------------

    async def secret(self) -> bytes:
        """See `Store.secret`."""
        return await self._call("secret")

    async def now(self) -> datetime:
        """See `Store.now`."""
        return await self._call("now")
