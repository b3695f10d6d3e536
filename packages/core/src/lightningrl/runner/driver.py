"""The thread behind live rollouts: one event loop for each server, whatever loops the user has.

Invariant: a live rollout is run by the process that enqueued it, and by nobody else.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

from lightningrl.capture.context import RolloutContext
from lightningrl.capture.jsonable import json_map, jsonable
from lightningrl.capture.rewards import emit_rewards
from lightningrl.capture.sink import BufferSink
from lightningrl.errors import (
    AgentError,
    ConfigError,
    LightningError,
    RunError,
    StaleAttempt,
    StoreUnavailable,
)
from lightningrl.runner.flush import EventFlusher
from lightningrl.runner.outcome import failure_of, judge
from lightningrl.runner.worker import worker_name
from lightningrl.schema import (
    AttemptState,
    Claim,
    Failure,
    FailureKind,
    GroupId,
    LiveTerms,
    Mode,
    NewRollout,
    RetryPolicy,
    RolloutId,
    new_id,
)
from lightningrl.store import Store, open_store

_log = logging.getLogger(__name__)

T = TypeVar("T")

_LEASE_SECONDS = 60.0
_RETRY = RetryPolicy(max_attempts=1, max_infrastructure_failures=0)
"""A rollout whose process died fails when its lease runs out: nobody else can run it."""
_NO_TERMS = LiveTerms(sampling=None)
_END_SECONDS = 30.0
"""How long the end of a rollout may wait for a store that is away."""


class LiveDriver:
    """Enqueues, claims, renews and finishes the live rollouts of this process at one server."""

    def __init__(self, server_url: str, key: str | None) -> None:
        self._server_url = server_url.rstrip("/")
        self._name = worker_name()
        self._running: dict[str, RolloutContext] = {}
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._store, self._flusher = self.submit(self._open(key)).result()
        self._beating = self.submit(self._beat())

    async def _open(self, key: str | None) -> tuple[Store, EventFlusher]:
        store = open_store(self._server_url, key=key)
        return store, EventFlusher(store)

    def submit(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Run `work` in the driver's thread."""
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    async def result_of(self, work: Coroutine[Any, Any, T]) -> T:
        """Run `work` in the driver's thread, and wait in the caller's loop."""
        return await asyncio.wrap_future(self.submit(work))

    async def begin(self, task: dict[str, Any], run: str, timeout_seconds: float) -> RolloutContext:
        """Start a rollout and its attempt.

        Raises:
            ConfigError: the run has no policy.
            RunError: it was cancelled at once, or the server restarted at this moment.
        """
        policies = await self._store.policies(run)
        if not policies:
            raise ConfigError(
                f"run {run!r} has no policy at {self._server_url}; register one, or name another run"
            )
        terms = next((one.live for one in policies if one.live is not None), _NO_TERMS)
        name = new_id("live")
        spec = NewRollout(
            id=RolloutId(name),
            run=run,
            mode=Mode.LIVE,
            iteration=0,
            task_id=name,
            group_id=GroupId(name),
            member=0,
            task=json_map(task),
            timeout_seconds=timeout_seconds,
            retry=_RETRY,
            sampling=terms.sampling,
            rewards=terms.rewards,
            await_rewards=terms.await_rewards,
            await_seconds=terms.await_seconds,
        )
        await self._store.enqueue([spec])
        claim = await self._claim(spec)
        sink = BufferSink()
        context = RolloutContext(
            rollout_id=claim.rollout.id,
            attempt_id=claim.attempt.id,
            server_url=self._server_url,
            key=claim.key,
            sink=sink,
            aliases=frozenset(name for one in policies for name in (one.name, *one.replaces)),
        )
        self._flusher.add(context.attempt_id, sink)
        self._running[context.attempt_id] = context
        return context

    async def _claim(self, spec: NewRollout) -> Claim:
        claims = await self._store.claim(
            self._name, run=spec.run, rollout_ids=[spec.id], lease_seconds=_LEASE_SECONDS
        )
        if not claims:
            raise RunError(
                f"live rollout {spec.id!r} could not be begun: it was cancelled, or the server restarted"
                " while it was leased; begin another one"
            )
        return claims[0]

    async def end(self, context: RolloutContext, output: Any, error: BaseException | None) -> None:
        """Store what is left and finish the attempt; one that ended elsewhere stays as it is.

        Raises:
            StoreUnavailable: the store stayed away; the rollout's lease will run out.
        """
        attempt_id = context.attempt_id
        try:
            failure = await self._outcome(context, output, error)
            context.close()
            await self._patiently(self._finish, context, failure, jsonable(output))
        except StaleAttempt as stale:
            _log.warning("live rollout %r ended before its block: %s", context.rollout_id, stale)
        finally:
            context.closed = True
            self._running.pop(attempt_id, None)
            self._flusher.remove(attempt_id)

    async def _outcome(
        self, context: RolloutContext, output: Any, error: BaseException | None
    ) -> Failure | None:
        """Emit the reward that the output is. A live rollout may also have none."""
        assert isinstance(context.sink, BufferSink)  # `begin` made it
        events = context.sink.events
        if error is not None:
            return failure_of(error, events, self._server_url)
        try:
            given = judge(
                output,
                events,
                by_recipe=False,
                what=f"rollout {context.rollout_id!r}",
                required=False,
            )
        except AgentError as wrong:
            _log.warning("%s", wrong)
            return Failure(kind=FailureKind.AGENT, message=str(wrong))
        if given is not None:
            emit_rewards(context, given, source="agent")
        return None

    async def _finish(
        self,
        context: RolloutContext,
        failure: Failure | None,
        output: Any,
    ) -> None:
        await self._flusher.flush()
        failure = failure or self._flusher.refusal(context.attempt_id)
        state = AttemptState.SUCCEEDED if failure is None else AttemptState.FAILED
        shown = output if failure is None else None
        await self._store.finish(context.attempt_id, state, failure=failure, output=shown)

    async def _patiently(self, work: Any, *args: Any) -> None:
        """Repeat `work` while the store is away, for `_END_SECONDS` at most."""
        give_up_at = self._loop.time() + _END_SECONDS
        while True:
            try:
                return await work(*args)
            except StoreUnavailable:
                if self._loop.time() > give_up_at:
                    raise
                await asyncio.sleep(1.0)

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(_LEASE_SECONDS / 3)
            held = [context.attempt_id for context in self._running.values()]
            if not held:
                continue
            try:
                await self._flusher.flush()
                ended = await self._store.heartbeat(self._name, held, lease_seconds=_LEASE_SECONDS)
            except LightningError as error:
                _log.warning("leases of live rollouts can't be renewed now: %s", error)
                continue
            for attempt_id in ended:
                if attempt_id in self._running:
                    self._running[attempt_id].closed = True


_drivers: dict[tuple[str, str | None], LiveDriver] = {}
_drivers_lock = threading.Lock()


def driver_for(server_url: str, key: str | None) -> LiveDriver:
    """This process's driver for a server."""
    with _drivers_lock:
        driver = _drivers.get((server_url, key))
        if driver is None:
            driver = _drivers[server_url, key] = LiveDriver(server_url, key)
        return driver
