"""The way to the engines: what breaks there is mended here, or told and recorded."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import aiohttp
import openai
import pytest

from lightningrl.errors import StoreUnavailable
from lightningrl.gateway import GatewayLimits
from lightningrl.schema import CallEvent, CallStatus, Claim
from lightningrl_testkit.gateway import RUN, GatewayRig, open_rig
from lightningrl_testkit.model_server import Answer, ModelServer, in_turn
from lightningrl_testkit.ports import held_port

HI = [{"role": "user", "content": "Hi"}]
QUICK = GatewayLimits(upstream_retries=2, backoff_seconds=0.001)


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[GatewayRig]:
    async with open_rig(tmp_path, limits=QUICK) as rig:
        yield rig


def agent(rig: GatewayRig, claim: Claim) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=rig.attempt_url(claim), api_key=claim.key, max_retries=0)


async def ask(rig: GatewayRig, claim: Claim) -> CallEvent:
    """The record of one answered call. Not by the SDK, which takes 0.1 s to make a client."""
    async with (
        aiohttp.ClientSession() as session,
        session.post(
            rig.attempt_url(claim) + "/chat/completions",
            json={"model": "m", "messages": HI},
            headers={"authorization": f"Bearer {claim.key}"},
        ) as response,
    ):
        assert response.status == 200, await response.text()
    return (await rig.calls(claim))[-1]


async def fail(rig: GatewayRig, claim: Claim) -> tuple[openai.APIStatusError, CallEvent]:
    """The error of one failed call, and its record."""
    async with agent(rig, claim) as client:
        with pytest.raises(openai.APIStatusError) as failed:
            await client.chat.completions.create(model="m", messages=HI)
    return failed.value, (await rig.calls(claim))[-1]


@pytest.fixture
def unused_url() -> Iterator[str]:
    with held_port() as port:
        yield f"http://127.0.0.1:{port}/v1"


@pytest.mark.parametrize("status", [502, 503, 504, 0])
async def test_a_busy_or_broken_engine_is_asked_again(rig: GatewayRig, status: int) -> None:
    with ModelServer() as engine:
        await rig.register(engine.url)
        engine.fail_next(2, status)  # 0: the connection breaks in the middle of the answer
        call = await ask(rig, await rig.claim())
        assert engine.calls == 3
    assert (call.status, call.upstream_retries) == (CallStatus.DELIVERED, 2)
    assert len(call.choices) == 1


async def test_an_engine_that_keeps_dying_fails_the_call(rig: GatewayRig) -> None:
    with ModelServer(in_turn(Answer("Yo", dies=True))) as engine:
        await rig.register(engine.url)
        error, call = await fail(rig, await rig.claim())
    assert (error.status_code, error.code) == (502, "engine_failed")
    assert "after 3 tries" in error.message
    assert (call.status, call.http_status, call.upstream_retries) == (CallStatus.FAILED, 502, 2)
    assert (call.choices, call.prompt_ids, call.endpoint) == ((), b"", engine.url)
    assert call.error is not None
    assert "after 3 tries" in call.error


async def test_an_engine_that_is_not_there_fails_the_call(rig: GatewayRig, unused_url: str) -> None:
    await rig.register(unused_url)
    error, call = await fail(rig, await rig.claim())
    assert error.status_code == 502
    assert unused_url in error.message
    assert call.upstream_retries == 2


async def test_what_the_engine_says_of_the_request_reaches_the_agent(rig: GatewayRig) -> None:
    with ModelServer(in_turn(Answer("the prompt is too long", status=400))) as engine:
        await rig.register(engine.url)
        error, call = await fail(rig, await rig.claim())
        assert engine.calls == 1
    assert (error.status_code, error.code) == (400, "scripted")
    assert "the prompt is too long" in error.message
    assert (call.status, call.http_status) == (CallStatus.FAILED, 400)
    assert call.error == "the prompt is too long"


async def test_an_engine_that_refuses_the_gateway_is_not_the_agents_fault(
    rig: GatewayRig,
) -> None:
    with ModelServer(in_turn(Answer("no such model", status=404))) as engine:
        await rig.register(engine.url)
        error, _ = await fail(rig, await rig.claim())
    assert error.status_code == 502
    assert "answered 404" in error.message
    assert "no such model" in error.message


async def test_an_engine_that_takes_too_long_fails_the_call(tmp_path: Path) -> None:
    limits = GatewayLimits(upstream_seconds=0.05)
    with ModelServer() as engine:
        async with open_rig(tmp_path, limits=limits) as rig:
            await rig.register(engine.url)
            engine.block()
            error, call = await fail(rig, await rig.claim())
            await engine.hung_up(1)
            assert engine.calls == 1
    assert (error.status_code, error.code) == (504, "engine_timeout")
    assert call.http_status == 504


async def test_a_client_that_hangs_up_cancels_the_engine_and_is_recorded(
    rig: GatewayRig,
) -> None:
    with ModelServer() as engine:
        await rig.register(engine.url)
        claim = await rig.claim()
        engine.block()
        async with agent(rig, claim) as client:
            calling = asyncio.create_task(client.chat.completions.create(model="m", messages=HI))
            await engine.arrived(1)
            calling.cancel()
            with pytest.raises(asyncio.CancelledError):
                await calling
        await engine.hung_up(1)
        engine.unblock()
        await ask(rig, claim)
    cancelled, delivered = await rig.calls(claim)
    assert (cancelled.status, cancelled.http_status) == (CallStatus.CANCELLED, 499)
    assert cancelled.choices == ()
    assert delivered.status is CallStatus.DELIVERED


async def test_a_rollout_keeps_to_one_engine_and_rollouts_spread(rig: GatewayRig) -> None:
    with ModelServer() as one, ModelServer() as two:
        await rig.register(one.url, two.url)
        used: list[str] = []
        for _ in range(16):
            claim = await rig.claim()
            endpoints = {(await ask(rig, claim)).endpoint for _ in range(2)}
            used.append(*endpoints)
    assert set(used) == {one.url, two.url}  # all 16 on one: 1 in 32768


async def test_when_an_engine_dies_its_rollouts_move_to_another(
    rig: GatewayRig, unused_url: str
) -> None:
    with ModelServer() as healthy:
        await rig.register(unused_url, healthy.url)
        calls = [await ask(rig, await rig.claim()) for _ in range(16)]
        async with rig.control() as control:
            [status] = await control.status()
    assert {call.endpoint for call in calls} == {healthy.url}
    assert sum(call.upstream_retries for call in calls) >= 1
    assert status.endpoints[0].failures >= 1
    assert status.endpoints[1].failures == 0


async def test_the_endpoints_key_is_sent_to_the_engine_only(rig: GatewayRig) -> None:
    from lightningrl.schema import Endpoint, Policy

    with ModelServer() as engine:
        policy = Policy(
            name="policy", run=RUN, version=0, endpoints=(Endpoint(engine.url, key="engine-key"),)
        )
        async with rig.control() as control:
            await control.register(policy)
        await ask(rig, await rig.claim())
        assert engine.arrivals[0].headers["authorization"] == "Bearer engine-key"


async def test_a_call_that_cannot_be_recorded_is_not_answered(
    rig: GatewayRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def unavailable(events: object, limits: object) -> None:
        raise StoreUnavailable("the disk is full")

    with ModelServer() as engine:
        await rig.register(engine.url)
        claim = await rig.claim()
        with monkeypatch.context() as patched:
            patched.setattr(rig.store, "append", unavailable)
            async with agent(rig, claim) as client:
                with pytest.raises(openai.InternalServerError, match="the disk is full") as error:
                    await client.chat.completions.create(model="m", messages=HI)
        assert error.value.status_code == 503
        await ask(rig, claim)
    assert len(await rig.calls(claim)) == 1


def test_a_synchronous_client_is_served_from_a_thread(tmp_path: Path) -> None:
    async def serve() -> str | None:
        with ModelServer(in_turn("Yo")) as engine:
            async with open_rig(tmp_path) as rig:
                await rig.register(engine.url)
                claim = await rig.claim()

                def call() -> str | None:
                    with openai.OpenAI(
                        base_url=f"{rig.url}/keys/{claim.key}/v1", api_key="none"
                    ) as client:
                        whole = client.chat.completions.create(model="m", messages=HI)
                        parts = client.chat.completions.create(model="m", messages=HI, stream=True)
                        text = "".join(part.choices[0].delta.content or "" for part in parts)
                        assert text == whole.choices[0].message.content
                        return text

                return await asyncio.to_thread(call)

    assert asyncio.run(serve()) == "Yo"
