"""Hold, drain, publish: weights change behind running agents, and no call notices."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import msgspec
import openai
import pytest
from openai.types.chat import ChatCompletion

from lightningrl.errors import Conflict
from lightningrl.gateway import GatewayClient, GatewayLimits, PolicyStatus
from lightningrl.gateway.identity import Contexts
from lightningrl.gateway.policies import Policies, Served
from lightningrl.gateway.sync import Gate
from lightningrl.machine.clock import SystemClock
from lightningrl.schema import AttemptId, CallStatus, Claim, Endpoint, Policy
from lightningrl.store import Store
from lightningrl_testkit.gateway import RUN, GatewayRig, open_rig
from lightningrl_testkit.model_server import Answer, ModelServer, in_turn

HI = [{"role": "user", "content": "Hi"}]


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[GatewayRig]:
    async with open_rig(tmp_path) as rig:
        yield rig


async def ask(rig: GatewayRig, claim: Claim, model: str = "m") -> ChatCompletion:
    """One call by an agent that does not try again."""
    async with openai.AsyncOpenAI(api_key=claim.key) as client:
        return await ask_with(client, rig, claim, model)


async def ask_with(
    client: openai.AsyncOpenAI, rig: GatewayRig, claim: Claim, model: str = "m"
) -> ChatCompletion:
    """As `ask`, over connections that others use too."""
    own = client.with_options(base_url=rig.attempt_url(claim), api_key=claim.key, max_retries=0)
    return await own.chat.completions.create(model=model, messages=HI)


async def held(control: GatewayClient, *, waiting: int) -> PolicyStatus:
    """Return when the sole policy is held and `waiting` calls wait at its gate."""
    async with asyncio.timeout(30):
        while True:
            [status] = await control.status()
            if (status.state, status.waiting) == ("held", waiting):
                return status


# -- the promise -------------------------------------------------------------------------------


async def test_under_load_no_call_is_refused_or_sees_two_versions(rig: GatewayRig) -> None:
    def take_a_while(request: dict[str, object]) -> Answer:
        return Answer("x", delay_seconds=0.002 if len(engine.arrivals) % 2 else 0.05)

    with ModelServer(take_a_while, version=0) as engine:
        await rig.register(engine.url)
        claims = [await rig.claim() for _ in range(12)]
        trained = asyncio.Event()
        client = openai.AsyncOpenAI(api_key="shared")

        async def agent(claim: Claim) -> int:
            calls = 0
            while not trained.is_set():
                await ask_with(client, rig, claim)
                calls += 1
            return calls

        async def train() -> None:
            async with rig.control() as control:
                for version in range(1, 6):
                    await engine.arrived(engine.calls + 12)
                    drained = await control.hold(RUN, "policy", hold_seconds=60, drain_seconds=0.01)
                    assert drained.version == version - 1
                    engine.version = version
                    await control.publish(RUN, "policy", version)
            trained.set()

        async with client:
            made, _ = await asyncio.gather(asyncio.gather(*map(agent, claims)), train())
    recorded = [await rig.calls(claim) for claim in claims]
    assert [len(calls) for calls in recorded] == made
    for call in (call for calls in recorded for call in calls):
        assert call.status is CallStatus.DELIVERED
        assert call.version_start == call.version_end
        assert call.choices[0].untrainable is None  # the engine reported that very version
    assert {call.version_start for calls in recorded for call in calls} >= {0, 1, 2, 3, 4}


async def test_a_drain_lets_running_calls_finish_and_new_ones_wait(rig: GatewayRig) -> None:
    with ModelServer() as engine:
        await rig.register(engine.url)
        claim = await rig.claim()
        engine.block()
        async with rig.control() as control:
            running = asyncio.create_task(ask(rig, claim))
            await engine.arrived(1)
            holding = asyncio.create_task(
                control.hold(RUN, "policy", hold_seconds=60, drain_seconds=30)
            )
            await held(control, waiting=0)
            late = asyncio.create_task(ask(rig, claim))
            status = await held(control, waiting=1)
            assert (status.in_flight, status.version) == (1, 0)
            with pytest.raises(Conflict, match="still has calls in flight"):
                await control.publish(RUN, "policy", 1)
            engine.unblock()
            await running
            assert (await holding).stopped == 0
            assert not late.done()
            await control.publish(RUN, "policy", 1)
            await late
    first, second = await rig.calls(claim)
    assert [first.version_start, second.version_start] == [0, 1]
    assert first.held_ms == 0.0
    assert 0.0 < second.held_ms <= second.latency_ms


async def test_a_call_that_outlasts_the_drain_is_sent_again_under_the_new_version(
    rig: GatewayRig,
) -> None:
    with ModelServer(in_turn("Yo"), version=0) as engine:
        await rig.register(engine.url)
        claim = await rig.claim()
        engine.block()
        async with rig.control() as control:
            running = asyncio.create_task(ask(rig, claim))
            await engine.arrived(1)
            drained = await control.hold(RUN, "policy", hold_seconds=60, drain_seconds=0)
            assert drained.stopped == 1
            await engine.hung_up(1)
            engine.version = 1
            engine.unblock()
            await control.publish(RUN, "policy", 1)
            reply = await running
    assert reply.choices[0].message.content == "Yo"
    [call] = await rig.calls(claim)
    assert (call.version_start, call.version_end, call.upstream_retries) == (1, 1, 1)
    assert call.choices[0].untrainable is None


async def test_release_lets_calls_pass_under_the_old_version(rig: GatewayRig) -> None:
    with ModelServer() as engine:
        await rig.register(engine.url, version=4)
        claim = await rig.claim()
        async with rig.control() as control:
            await control.hold(RUN, "policy", hold_seconds=60, drain_seconds=0)
            call = asyncio.create_task(ask(rig, claim))
            await held(control, waiting=1)
            assert (await control.release(RUN, "policy")).version == 4
            await call
    assert (await rig.calls(claim))[0].version_start == 4


async def test_a_hold_waits_for_calls_that_outlived_the_hold_before(rig: GatewayRig) -> None:
    with ModelServer() as engine:
        await rig.register(engine.url)
        claim = await rig.claim()
        engine.block()
        async with rig.control() as control:
            running = asyncio.create_task(ask(rig, claim))
            await engine.arrived(1)
            first = asyncio.create_task(
                control.hold(RUN, "policy", hold_seconds=60, drain_seconds=30)
            )
            await held(control, waiting=0)
            await control.release(RUN, "policy")
            with pytest.raises(Conflict, match="ended before its calls were drained"):
                await first
            # The call is still sampled by the old weights, so they can't change before it is stopped.
            again = await control.hold(RUN, "policy", hold_seconds=60, drain_seconds=0)
            assert again.stopped == 1
            engine.unblock()
            await control.publish(RUN, "policy", 1)
            await running
    [call] = await rig.calls(claim)
    assert (call.version_start, call.version_end) == (1, 1)


async def test_a_release_in_the_middle_of_a_drain_ends_the_hold(rig: GatewayRig) -> None:
    with ModelServer() as engine:
        await rig.register(engine.url)
        claim = await rig.claim()
        engine.block()
        async with rig.control() as control:
            running = asyncio.create_task(ask(rig, claim))
            await engine.arrived(1)
            holding = asyncio.create_task(
                control.hold(RUN, "policy", hold_seconds=60, drain_seconds=30)
            )
            await held(control, waiting=0)
            await control.release(RUN, "policy")
            with pytest.raises(Conflict, match="don't change its weights"):
                await holding
            engine.unblock()
            await running
    assert (await rig.calls(claim))[0].upstream_retries == 0


# -- versions ----------------------------------------------------------------------------------


async def test_a_version_never_goes_back_or_is_used_twice(rig: GatewayRig) -> None:
    await rig.register("http://127.0.0.1:9/v1", version=2)
    async with rig.control() as control:
        await control.hold(RUN, "policy", hold_seconds=60, drain_seconds=0)
        for version in (1, 2):
            with pytest.raises(Conflict, match="publish a higher one"):
                await control.publish(RUN, "policy", version)
        await control.publish(RUN, "policy", 3)
        await control.publish(RUN, "policy", 3)  # its answer was lost, say
        with pytest.raises(Conflict):
            await rig.register("http://127.0.0.1:9/v1", version=2)
        [status] = await control.status()
    assert (status.version, status.held) == (3, False)


# -- leases ------------------------------------------------------------------------------------


async def test_when_a_hold_runs_out_calls_are_refused_until_someone_knows_the_weights(
    rig: GatewayRig,
) -> None:
    with ModelServer() as engine:
        await rig.register(engine.url)
        claim = await rig.claim()
        async with rig.control() as control:
            await control.hold(RUN, "policy", hold_seconds=0.05, drain_seconds=0)
            for _ in ("waits, then refused", "refused at once"):
                with pytest.raises(openai.InternalServerError) as refused:
                    await ask(rig, claim)
                assert refused.value.status_code == 503
                assert refused.value.code == "weights_unknown"
                assert "retry-after" in refused.value.response.headers
            [status] = await control.status()
            assert status.state == "expired"
            assert engine.calls == 0
            await control.publish(RUN, "policy", 1)
            await ask(rig, claim)
    first, second, third = await rig.calls(claim)
    assert (first.status, first.http_status, first.endpoint) == (CallStatus.FAILED, 503, "")
    assert second.status is CallStatus.FAILED
    assert (third.status, third.version_start) == (CallStatus.DELIVERED, 1)


async def test_a_restarted_gateway_still_holds_and_keeps_the_version(tmp_path: Path) -> None:
    async with open_rig(tmp_path) as rig, rig.control() as control:
        await rig.register("http://127.0.0.1:9/v1", version=7)
        await control.hold(RUN, "policy", hold_seconds=60, drain_seconds=0)
    async with open_rig(tmp_path) as rig, rig.control() as control:
        [status] = await control.status()
        assert (status.version, status.state) == (7, "held")
        # A trainer that starts again registers its engines; the hold stays.
        await rig.register("http://127.0.0.1:10/v1", version=7)
        [status] = await control.status()
        assert (status.endpoints[0].url, status.state) == ("http://127.0.0.1:10/v1", "held")


async def test_a_hold_that_ran_out_while_the_gateway_was_down_is_not_released(
    tmp_path: Path,
) -> None:
    async with open_rig(tmp_path) as rig:
        policy = await rig.register("http://127.0.0.1:9/v1")
        past = datetime.now(UTC) - timedelta(seconds=1)
        await rig.store.put_policy(msgspec.structs.replace(policy, held_until=past))
    async with open_rig(tmp_path) as rig:
        claim = await rig.claim()
        with pytest.raises(openai.InternalServerError, match="weights are unknown"):
            await ask(rig, claim)


class OwnClock:
    """A clock that the test turns."""

    def __init__(self) -> None:
        self.at = datetime(2026, 1, 1, tzinfo=UTC)

    def now(self) -> datetime:
        return self.at

    def monotonic(self) -> float:
        return self.at.timestamp()


async def test_time_held_does_not_count_towards_an_attempts_timeout(tmp_path: Path) -> None:
    clock = OwnClock()
    with ModelServer() as engine:
        async with open_rig(tmp_path, clock=clock) as rig, rig.control() as control:
            await rig.register(engine.url)
            claim = await rig.claim(timeout_seconds=10)
            await control.hold(RUN, "policy", hold_seconds=60, drain_seconds=0)
            call = asyncio.create_task(ask(rig, claim))
            await held(control, waiting=1)
            clock.at += timedelta(seconds=10.5)  # held time is given back in grants of 1 s
            assert await rig.store.expire() == 0
            await control.publish(RUN, "policy", 1)
            await call


async def test_a_grant_that_fails_is_not_the_last() -> None:
    again = asyncio.Event()
    tries = 0

    async def extend(attempt_ids: list[AttemptId], seconds: float) -> None:
        nonlocal tries
        tries += 1
        if tries == 1:
            raise RuntimeError("a defect")
        again.set()

    gate = Gate("policy", extend)
    gate.hold(60)
    async with asyncio.timeout(30):
        await again.wait()
    gate.close()


async def test_a_call_that_comes_while_its_policy_is_registered_is_drained_too(
    tmp_path: Path,
) -> None:
    async with open_rig(tmp_path) as rig:
        contexts = Contexts(rig.store, SystemClock(), GatewayLimits())

        class Slow:
            """The rig's store, whose answer to `put_policy` takes until a call has come."""

            def __getattr__(self, method: str) -> Any:
                return getattr(rig.store, method)

            async def put_policy(self, policy: Policy) -> None:
                await rig.store.put_policy(policy)
                calls.append(await policies.resolve(RUN, "policy", None))

        calls: list[Served] = []
        policies = Policies(cast("Store", Slow()), contexts)
        await policies.register(Policy("policy", RUN, 0, (Endpoint("http://engine/v1"),)))
        [served] = calls
        assert policies.get(RUN, "policy") is served


# -- the end -----------------------------------------------------------------------------------


async def test_a_closing_gateway_finishes_running_calls_and_refuses_waiting_and_new_ones(
    rig: GatewayRig,
) -> None:
    with ModelServer() as engine:
        await rig.register(engine.url, name="busy", replaces=("x",))
        claim = await rig.claim()
        engine.block()
        async with rig.control() as control:
            running = asyncio.create_task(ask(rig, claim, "busy"))
            await engine.arrived(1)
            await rig.register(engine.url, name="held", replaces=("y",))
            await control.hold(RUN, "held", hold_seconds=60, drain_seconds=0)
            waiting = asyncio.create_task(ask(rig, claim, "held"))
            async with asyncio.timeout(30):
                while (await control.status())[1].waiting != 1:
                    pass
            closing = asyncio.create_task(rig.gateway.close())
            for refused in (waiting, asyncio.create_task(ask(rig, claim, "busy"))):
                with pytest.raises(openai.InternalServerError, match="shutting down"):
                    await refused
            assert {status.state for status in await control.status()} == {"closed"}
        engine.unblock()
        assert (await running).choices[0].message.content == "Hi"
        await closing
    assert [(call.policy, call.status) for call in await rig.calls(claim)] == [
        ("held", CallStatus.FAILED),
        ("busy", CallStatus.DELIVERED),
    ]


async def test_a_closing_gateway_stops_what_takes_too_long(tmp_path: Path) -> None:
    with ModelServer() as engine:
        async with open_rig(tmp_path, limits=GatewayLimits(close_seconds=0)) as rig:
            await rig.register(engine.url)
            claim = await rig.claim()
            engine.block()
            running = asyncio.create_task(ask(rig, claim))
            await engine.arrived(1)
            await rig.gateway.close()
            with pytest.raises(openai.InternalServerError, match="shutting down"):
                await running
            [call] = await rig.calls(claim)
    assert (call.status, call.http_status) == (CallStatus.FAILED, 503)


async def test_a_closing_gateway_does_not_wait_for_an_engine_that_is_gone(tmp_path: Path) -> None:
    an_hour = GatewayLimits(backoff_seconds=3600, backoff_limit_seconds=3600, close_seconds=3600)
    with ModelServer() as engine:
        async with open_rig(tmp_path, limits=an_hour) as rig:
            await rig.register(engine.url)
            claim = await rig.claim()
            engine.fail_next(3, 0)
            running = asyncio.create_task(ask(rig, claim))
            await engine.arrived(2)
            await rig.gateway.close()
            with pytest.raises(openai.InternalServerError, match="after 3 tries"):
                await running
            [call] = await rig.calls(claim)
    assert (call.status, call.http_status, call.upstream_retries) == (CallStatus.FAILED, 502, 2)
