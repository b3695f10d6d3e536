"""One worker: it keeps its slots full, its leases alive, and gives back what it can't finish."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import openai
import pytest

import lightningrl
from lightningrl.capture.client import install_client_patch, uninstall_client_patch
from lightningrl.capture.sink import BufferSink
from lightningrl.errors import LightningError, StoreUnavailable
from lightningrl.runner.attempt import AttemptRunner
from lightningrl.runner.flush import EventFlusher
from lightningrl.runner.resolve import ResolvedAgent, agent_call
from lightningrl.runner.threads import abandoned_threads
from lightningrl.runner.worker import Worker, WorkerLimits
from lightningrl.schema import (
    AttemptState,
    FailureKind,
    GroupId,
    Mode,
    NewRollout,
    RetryPolicy,
    RolloutId,
    RolloutState,
)
from lightningrl.store import RolloutQuery, Store
from lightningrl_testkit.gateway import RUN, GatewayRig, open_rig
from lightningrl_testkit.model_server import ModelServer
from lightningrl_testkit.records import log


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[GatewayRig]:
    install_client_patch()
    with ModelServer() as model:
        async with open_rig(tmp_path) as rig:
            await rig.register(model.url, name="policy")
            yield rig
    uninstall_client_patch()


async def ask() -> None:
    async with openai.AsyncOpenAI(base_url="http://127.0.0.1:9/v1", api_key="none") as client:
        await client.chat.completions.create(
            model="policy", messages=[{"role": "user", "content": "hello"}]
        )


async def enqueue(
    store: Store, count: int, *, timeout_seconds: float = 600.0, max_attempts: int = 1
) -> list[RolloutId]:
    made = [
        NewRollout(
            id=RolloutId(f"r{index}"),
            run=RUN,
            mode=Mode.TRAIN,
            iteration=1,
            task_id=f"t{index}",
            group_id=GroupId(f"g{index}"),
            member=0,
            task={"index": index},
            timeout_seconds=timeout_seconds,
            retry=RetryPolicy(max_attempts=max_attempts),
        )
        for index in range(count)
    ]
    await store.enqueue(made)
    return [one.id for one in made]


def make_worker(
    rig: GatewayRig, agent: Callable[[Any], Any], *, store: Any = None, **limits: Any
) -> Worker:
    used: Store = rig.store if store is None else store
    runner = AttemptRunner(
        store=used,
        agent=ResolvedAgent(agent_call(agent, (), what="agent"), None, None, None),
        flusher=EventFlusher(used),
        server_url=rig.url,
        aliases=frozenset({"policy"}),
        folder=Path.cwd(),
    )
    chosen = {"wait_seconds": 0.2, "lease_seconds": 3.0, **limits}
    return Worker(used, runner, RUN, WorkerLimits(**chosen))


@asynccontextmanager
async def working(worker: Worker) -> AsyncIterator[None]:
    task = asyncio.create_task(worker.run())
    try:
        yield
    finally:
        worker.stop()
        await task


async def ended(store: Store, count: int) -> None:
    """Return when `count` rollouts have ended."""
    while True:
        progress = await store.progress(RUN, Mode.TRAIN, 1, seen=count - 1, wait_seconds=5.0)
        if progress.ended >= count:
            return


async def test_all_rollouts_end_and_no_more_run_at_once_than_allowed(rig: GatewayRig) -> None:
    running, most = 0, 0

    async def agent(task: Any) -> float:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await ask()
        running -= 1
        return float(task["index"])

    await enqueue(rig.store, 20)
    async with working(make_worker(rig, agent, concurrency=4)):
        await ended(rig.store, 20)
    rollouts = await rig.store.rollouts(RolloutQuery(run=RUN))
    assert sorted(one.reward or 0.0 for one in rollouts) == [float(index) for index in range(20)]
    assert most == 4


async def test_an_async_agent_that_hangs_times_out_in_the_store(rig: GatewayRig) -> None:
    stopped = asyncio.Event()

    async def agent(_: Any) -> float:
        try:
            await asyncio.Event().wait()
        finally:
            stopped.set()
        return 1.0

    [rollout_id] = await enqueue(rig.store, 1, timeout_seconds=0.1)
    async with working(make_worker(rig, agent)):
        await ended(rig.store, 1)
        await stopped.wait()
    [attempt] = await rig.store.attempts([rollout_id])
    assert attempt.state is AttemptState.TIMED_OUT


async def test_a_sync_agent_that_hangs_makes_its_process_replaceable(rig: GatewayRig) -> None:
    release = threading.Event()
    stuck: list[threading.Thread] = []

    def agent(_: Any) -> float:
        stuck.append(threading.current_thread())
        release.wait()
        return 1.0

    [rollout_id] = await enqueue(rig.store, 1, timeout_seconds=0.1)
    worker = make_worker(rig, agent)
    await worker.run()  # it ends by itself, since it holds a thread that it can't stop
    assert worker.tainted
    [attempt] = await rig.store.attempts([rollout_id])
    assert attempt.state is AttemptState.TIMED_OUT
    release.set()
    await asyncio.to_thread(stuck[0].join)
    assert abandoned_threads() == 0


async def test_a_cancelled_rollout_stops_its_agent(rig: GatewayRig) -> None:
    started, stopped = asyncio.Event(), asyncio.Event()

    async def agent(_: Any) -> float:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            stopped.set()
        return 1.0

    ids = await enqueue(rig.store, 1)
    async with working(make_worker(rig, agent)):
        await started.wait()
        await rig.store.cancel(ids)
        await stopped.wait()
    [rollout] = await rig.store.rollouts(RolloutQuery(run=RUN))
    assert rollout.state is RolloutState.CANCELLED


async def test_a_stopped_worker_lets_attempts_end_within_its_grace(rig: GatewayRig) -> None:
    started, go = asyncio.Event(), asyncio.Event()

    async def agent(_: Any) -> float:
        started.set()
        await go.wait()
        await ask()
        return 1.0

    await enqueue(rig.store, 2)
    worker = make_worker(rig, agent, concurrency=1, grace_seconds=30.0)
    async with working(worker):
        await started.wait()
        worker.stop()
        go.set()
    states = {one.state for one in await rig.store.rollouts(RolloutQuery(run=RUN))}
    assert states == {RolloutState.SUCCEEDED, RolloutState.QUEUED}


async def test_a_stopped_worker_releases_what_does_not_end(rig: GatewayRig) -> None:
    started = asyncio.Event()

    async def agent(_: Any) -> float:
        started.set()
        await asyncio.Event().wait()
        return 1.0

    [rollout_id] = await enqueue(rig.store, 1)
    worker = make_worker(rig, agent, grace_seconds=0.0)
    async with working(worker):
        await started.wait()
    [rollout] = await rig.store.rollouts(RolloutQuery(run=RUN))
    assert rollout.state is RolloutState.QUEUED  # the next worker may have it at once
    [attempt] = await rig.store.attempts([rollout_id])
    assert attempt.failure is not None
    assert attempt.failure.kind is FailureKind.INFRASTRUCTURE
    assert worker.name in attempt.failure.message


class ShakyStore:
    """The real store behind a connection that fails whenever a test says so."""

    def __init__(self, store: Store, error: type[Exception] = StoreUnavailable) -> None:
        self._store = store
        self._error = error
        self.failures: dict[str, int] = {}
        """Method -> how many of its next calls fail."""
        self.beaten = asyncio.Event()
        """Set when a heartbeat got through."""

    def __getattr__(self, method: str) -> Any:
        async def call(*args: Any, **kwargs: Any) -> Any:
            if self.failures.get(method, 0) > 0:
                self.failures[method] -= 1
                raise self._error(f"{method}: the connection broke")
            answer = await getattr(self._store, method)(*args, **kwargs)
            if method == "heartbeat":
                self.beaten.set()
            return answer

        return call


async def test_no_finished_result_is_lost_while_the_store_is_away(rig: GatewayRig) -> None:
    async def agent(_: Any) -> float:
        await ask()
        return 1.0

    shaky = ShakyStore(rig.store)
    shaky.failures = {"claim": 1, "append": 2, "finish": 2, "heartbeat": 1}
    await enqueue(rig.store, 3)
    async with working(make_worker(rig, agent, store=shaky)):
        await ended(rig.store, 3)
    rollouts = await rig.store.rollouts(RolloutQuery(run=RUN))
    assert [(one.state, one.reward, one.attempts) for one in rollouts] == [
        (RolloutState.SUCCEEDED, 1.0, 1)
    ] * 3


async def test_an_error_of_the_server_does_not_end_the_renewing_of_leases(rig: GatewayRig) -> None:
    shaky = ShakyStore(rig.store, LightningError)
    shaky.failures = {"heartbeat": 1}

    async def agent(_: Any) -> float:
        await ask()
        await shaky.beaten.wait()
        return 1.0

    await enqueue(rig.store, 1)
    async with working(make_worker(rig, agent, store=shaky, lease_seconds=0.3)):
        await ended(rig.store, 1)
    [rollout] = await rig.store.rollouts(RolloutQuery(run=RUN))
    assert rollout.state is RolloutState.SUCCEEDED


async def test_a_worker_that_can_no_longer_renew_leases_ends_and_says_why(rig: GatewayRig) -> None:
    broken = ShakyStore(rig.store, ZeroDivisionError)
    broken.failures = {"heartbeat": 1}

    async def agent(_: Any) -> float:
        await asyncio.Event().wait()
        return 1.0

    await enqueue(rig.store, 1)
    worker = make_worker(rig, agent, store=broken, lease_seconds=0.3, grace_seconds=0.0)
    with pytest.raises(ZeroDivisionError, match="heartbeat"):
        await worker.run()
    [rollout] = await rig.store.rollouts(RolloutQuery(run=RUN))
    assert rollout.state is RolloutState.QUEUED  # what it held was given back


async def test_events_that_cannot_be_stored_fail_their_own_attempt_alone(rig: GatewayRig) -> None:
    emitted = asyncio.Barrier(2)

    async def agent(task: Any) -> float:
        await ask()
        lightningrl.reward(1.0, step="s", name="\ud83d" if task["index"] else "fine")
        await emitted.wait()  # both are in one append
        return 1.0

    await enqueue(rig.store, 2)
    async with working(make_worker(rig, agent)):
        await ended(rig.store, 2)
    good, bad = await rig.store.rollouts(RolloutQuery(run=RUN))
    assert (good.state, bad.state) == (RolloutState.SUCCEEDED, RolloutState.FAILED)


async def test_a_flush_stores_what_was_emitted_before_it_and_waits_for_no_more(
    tmp_path: Path,
) -> None:
    async with open_rig(tmp_path) as rig:
        claim = await rig.claim()
        busy = BufferSink()
        busy.emit(log(claim.attempt.id, "e-0"))

        class Chatty(ShakyStore):
            """While it appends, another agent goes on."""

            def __getattr__(self, method: str) -> Any:
                busy.emit(log(claim.attempt.id, f"e-{len(busy.events)}"))
                return super().__getattr__(method)

        flusher = EventFlusher(Chatty(rig.store))
        flusher.add(claim.attempt.id, busy)
        async with asyncio.timeout(30):
            await flusher.flush()
        [events] = await rig.store.events([claim.attempt.id])
    assert [one.id for one in events] == ["e-0"]
