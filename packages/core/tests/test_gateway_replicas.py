"""Several gateways on one PostgreSQL database: one policy, one hold, one version, whoever dies."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import msgspec
import openai
import pytest

from lightningrl.errors import StoreUnavailable
from lightningrl.gateway import Gateway, GatewayClient, GatewayLimits
from lightningrl.machine.clock import SystemClock
from lightningrl.schema import (
    CallEvent,
    CallStatus,
    Claim,
    Endpoint,
    Fork,
    Policy,
)
from lightningrl.store import Store, open_store
from lightningrl.store.postgres import PostgresStore
from lightningrl_testkit.gateway import serve
from lightningrl_testkit.model_server import ModelServer, in_turn
from lightningrl_testkit.records import group
from lightningrl_testkit.server import serving

pytestmark = pytest.mark.usefixtures("forked")

HI = [{"role": "user", "content": "Hi"}]
RUN = "run"


class Replica:
    """A gateway with a connection to the database of its own."""

    def __init__(self, store: Store, url: str) -> None:
        self.store = store
        self.url = url
        self.control = GatewayClient(url)

    async def ask(self, claim: Claim) -> str | None:
        """A call of the claim's agent that comes to this replica."""
        base = f"{self.url}/rollouts/{claim.rollout.id}/attempts/{claim.attempt.id}/v1"
        async with openai.AsyncOpenAI(base_url=base, api_key=claim.key, max_retries=0) as client:
            answer = await client.chat.completions.create(model="policy", messages=HI)
        return answer.choices[0].message.content

    async def state(self) -> tuple[str, int, int]:
        """State, version and waiting calls of the sole policy."""
        statuses = await self.control.status()
        if not statuses:
            return "unknown", 0, 0
        [status] = statuses
        return status.state, status.version, status.waiting

    async def until(self, *wanted: str | int) -> None:
        """Return when state, version and waiting calls begin with those `wanted`."""
        async with asyncio.timeout(30):
            while (await self.state())[: len(wanted)] != wanted:
                pass


@asynccontextmanager
async def replica(url: str, limits: GatewayLimits | None = None) -> AsyncIterator[Replica]:
    async with AsyncExitStack() as stack:
        store = PostgresStore.open(url)
        stack.push_async_callback(store.close)
        gateway = Gateway(store, clock=SystemClock(), limits=limits)
        await gateway.start()
        stack.push_async_callback(gateway.close)
        one = Replica(store, await stack.enter_async_context(serve(gateway)))
        stack.push_async_callback(one.control.close)
        yield one


@pytest.fixture
async def pair(postgres_url: str) -> AsyncIterator[tuple[Replica, Replica]]:
    async with replica(postgres_url) as one, replica(postgres_url) as two:
        yield one, two


async def register(one: Replica, engine: str) -> Policy:
    policy = Policy(name="policy", run=RUN, version=0, endpoints=(Endpoint(engine),))
    return await one.control.register(policy)


async def claims(store: Store, count: int) -> list[Claim]:
    await store.enqueue(group(count))
    return await store.claim("worker", limit=count, lease_seconds=600)


async def calls(store: Store, claim: Claim) -> list[CallEvent]:
    [events] = await store.events([claim.attempt.id])
    return [event for event in events if isinstance(event, CallEvent)]


async def test_a_weight_sync_at_one_gateway_holds_and_drains_all(
    pair: tuple[Replica, Replica],
) -> None:
    one, two = pair
    with ModelServer() as engine:
        await register(one, engine.url)
        first, second = await claims(one.store, 2)
        await two.ask(first)  # a policy is known wherever it was registered
        engine.block()
        running = asyncio.create_task(two.ask(first))
        await engine.arrived(2)
        holding = asyncio.create_task(
            one.control.hold(RUN, "policy", hold_seconds=60, drain_seconds=30)
        )
        await two.until("held")
        waiting = asyncio.create_task(two.ask(second))
        await two.until("held", 0, 1)
        assert not holding.done()  # a call is under way at the other gateway
        with pytest.raises(Exception, match="still has calls in flight"):
            await one.control.publish(RUN, "policy", 1)
        engine.unblock()
        held = await holding
        assert (held.version, held.stopped) == (0, 0)
        await running
        assert not waiting.done()
        await one.control.publish(RUN, "policy", 1)
        await waiting
        assert await two.state() == ("open", 1, 0)
    recorded = await calls(one.store, first) + await calls(one.store, second)
    assert [(call.version_start, call.version_end) for call in recorded] == [(0, 0), (0, 0), (1, 1)]


async def test_calls_that_do_not_end_are_stopped_at_every_gateway_and_sent_again(
    pair: tuple[Replica, Replica],
) -> None:
    one, two = pair
    with ModelServer() as engine:
        await register(one, engine.url)
        first, second = await claims(one.store, 2)
        engine.block()
        running = [asyncio.create_task(one.ask(first)), asyncio.create_task(two.ask(second))]
        await engine.arrived(2)
        held = await two.control.hold(RUN, "policy", hold_seconds=60, drain_seconds=0.05)
        assert held.stopped == 2
        engine.unblock()
        await one.control.publish(RUN, "policy", 1)  # whichever gateway the trainer reaches
        await asyncio.gather(*running)
    for claim in (first, second):
        [call] = await calls(one.store, claim)
        assert (call.status, call.version_start) == (CallStatus.DELIVERED, 1)


async def test_a_gateway_that_starts_in_the_middle_of_a_sync_holds_too(postgres_url: str) -> None:
    with ModelServer() as engine:
        async with replica(postgres_url) as one:
            await register(one, engine.url)
            [claim] = await claims(one.store, 1)
            await one.control.hold(RUN, "policy", hold_seconds=60, drain_seconds=1)
            async with replica(postgres_url) as late:
                asking = asyncio.create_task(late.ask(claim))
                await late.until("held", 0, 1)
                await one.control.publish(RUN, "policy", 1)
                await asking
        assert engine.calls == 1


async def test_a_gateway_that_nobody_hears_passes_no_call(
    pair: tuple[Replica, Replica], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its beats are lost, as when its host is cut off; its calls wait, and it comes back by itself."""
    one, two = pair

    async def unheard(gateway: str, drained: object = ()) -> None:
        raise StoreUnavailable("cut off")

    with ModelServer() as engine:
        await register(one, engine.url)
        [claim] = await claims(one.store, 1)
        await two.ask(claim)
        engine.block()
        running = asyncio.create_task(two.ask(claim))
        await engine.arrived(2)
        with monkeypatch.context() as patched:
            patched.setattr(two.store, "see_gateway", unheard)
            await engine.hung_up(1)  # stopped by itself
            await two.until("held", 0, 1)
            held = await one.control.hold(RUN, "policy", hold_seconds=60, drain_seconds=1)
            assert held.stopped == 0
            await one.control.publish(RUN, "policy", 1)
            assert not running.done()
        engine.unblock()
        await running
    before, after = await calls(one.store, claim)
    assert (before.version_end, after.version_start, after.version_end) == (0, 1, 1)


async def test_of_two_trainers_that_publish_at_once_none_is_lost(
    pair: tuple[Replica, Replica],
) -> None:
    one, two = pair
    await register(one, "http://127.0.0.1:9/v1")
    await two.until("open", 0)
    other = Policy("other", RUN, 0, (Endpoint("http://127.0.0.1:9/v1"),))
    await two.control.register(other)
    for version in range(1, 11):
        await asyncio.gather(
            one.control.publish(RUN, "policy", version), two.control.publish(RUN, "other", version)
        )
    stored = {policy.name: policy.version for policy in await one.store.policies(RUN)}
    assert stored == {"policy": 10, "other": 10}


async def test_on_a_store_with_one_writer_nothing_beats(tmp_path: Path) -> None:
    store = open_store(tmp_path / "store.db")
    gateway = Gateway(store, clock=SystemClock())
    await gateway.start()
    assert await store.gateways(seen_within_seconds=60.0) == []
    await gateway.close()
    await store.close()
    assert not store.shared


async def test_a_gateway_killed_in_the_middle_of_a_sync_holds_up_nobody(postgres_url: str) -> None:
    with ModelServer() as engine, serving(postgres_url) as two_served:
        store = PostgresStore.open(postgres_url)
        two = Replica(store, two_served[0])
        with serving(postgres_url) as (url, process):
            one = Replica(store, url)
            await register(one, engine.url)
            first, second = await claims(store, 2)
            engine.block()
            lost = asyncio.create_task(one.ask(first))
            running = asyncio.create_task(two.ask(second))
            await engine.arrived(2)
            holding = asyncio.create_task(
                one.control.hold(RUN, "policy", hold_seconds=60, drain_seconds=30)
            )
            await two.until("held")
            process.kill()
            process.wait()
        with pytest.raises(openai.APIConnectionError):
            await lost
        await engine.hung_up(1)
        holding.cancel()
        await asyncio.gather(holding, return_exceptions=True)
        await one.control.close()
        again = asyncio.create_task(
            two.control.hold(RUN, "policy", hold_seconds=60, drain_seconds=30)
        )
        engine.unblock()
        await running
        assert (await again).version == 0  # once the killed one's lease is up
        waiting = asyncio.create_task(two.ask(first))  # its agent tries again elsewhere
        await two.until("held", 0, 1)
        await two.control.publish(RUN, "policy", 1)
        await waiting
        assert await two.state() == ("open", 1, 0)
        [of_first], [of_second] = await calls(store, first), await calls(store, second)
        await two.control.close()
        await store.close()
    assert (of_first.version_start, of_first.version_end) == (1, 1)
    assert (of_second.version_start, of_second.version_end) == (0, 0)


async def test_an_attempt_has_no_more_calls_than_its_limit_at_all_gateways_together(
    postgres_url: str,
) -> None:
    limits = GatewayLimits(calls_per_attempt=3)
    async with replica(postgres_url, limits) as one, replica(postgres_url, limits) as two:
        with ModelServer() as engine:
            await register(one, engine.url)
            [claim] = await claims(one.store, 1)
            engine.block()
            asking = [asyncio.create_task(where.ask(claim)) for where in (one, two) for _ in "abc"]
            await engine.arrived(6)
            engine.unblock()
            answers = await asyncio.gather(*asking, return_exceptions=True)
        refusals = [one for one in answers if isinstance(one, openai.RateLimitError)]
        assert len(refusals) == 3
        assert all("has 3 calls of model calls recorded" in one.message for one in refusals)
        assert len(await calls(one.store, claim)) == 3


async def test_a_conversation_goes_on_by_id_at_whatever_gateway(
    pair: tuple[Replica, Replica],
) -> None:
    one, two = pair
    with ModelServer(in_turn("one", "two", "three", "four")) as engine:
        await register(one, engine.url)
        [claim] = await claims(one.store, 1)
        last: str | None = None
        for text, where in zip("1234", (one, two, two, one), strict=True):
            async with openai.AsyncOpenAI(
                base_url=f"{where.url}/v1", api_key=claim.key, max_retries=0
            ) as client:
                answer = await client.responses.create(
                    model="policy", input=text, previous_response_id=last
                )
            last = answer.id
    assert [message["content"] for message in engine.arrivals[-1].body["messages"]] == [
        "1",
        "one",
        "2",
        "two",
        "3",
        "three",
        "4",
    ]


async def test_two_equal_requests_at_two_gateways_get_two_recorded_answers(
    pair: tuple[Replica, Replica],
) -> None:
    """Each recorded answer is given to one step, also where both gateways look for it at once."""
    with ModelServer(in_turn(*(f"answer {number}" for number in range(24)))) as engine:
        await register(pair[0], engine.url)
        [parent] = await claims(pair[0].store, 1)
        recorded = [await pair[0].ask(parent) for _ in range(20)]
        [spec] = group(task="fork")
        fork = Fork(parent.attempt.id)
        await pair[0].store.enqueue([msgspec.structs.replace(spec, fork=fork)])
        [claim] = await pair[0].store.claim("worker", limit=1, lease_seconds=600)
        asking = [where.ask(claim) for _ in range(10) for where in pair]
        given = await asyncio.gather(*asking)
        assert sorted(given) == sorted(recorded)
        assert len(engine.arrivals) == 20
        origins = [one.replay_of for one in await calls(pair[0].store, claim)]
        assert len(origins) == len(set(origins)) == 20
