"""Engines that die, hang and come back: found out by asking them, not by every rollout in turn."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

import aiohttp
import pytest

from lightningrl.gateway import GatewayLimits
from lightningrl.gateway.health import IN_USE_SECONDS, Health, url_at
from lightningrl.gateway.upstream import rank
from lightningrl.schema import CallEvent, Claim, Endpoint
from lightningrl_testkit.gateway import GatewayRig, open_rig, serve
from lightningrl_testkit.model_server import ModelServer

# Once out of rotation, only a check brings an endpoint back: nothing is avoided by time.
LIMITS = GatewayLimits(
    backoff_seconds=0.001,
    backoff_limit_seconds=0.001,
    health_seconds=0.01,
    health_timeout_seconds=0.2,
    health_failures=2,
)


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[GatewayRig]:
    async with open_rig(tmp_path, limits=LIMITS) as rig:
        yield rig


async def ask(rig: GatewayRig, claim: Claim) -> CallEvent:
    """The record of one answered call."""
    async with (
        aiohttp.ClientSession() as session,
        session.post(
            rig.attempt_url(claim) + "/chat/completions",
            json={"model": "m", "messages": [{"role": "user", "content": "Hi"}]},
            headers={"authorization": f"Bearer {claim.key}"},
        ) as response,
    ):
        assert response.status == 200, await response.text()
    return (await rig.calls(claim))[-1]


async def until(rig: GatewayRig, condition: Callable[[list[bool]], bool]) -> None:
    """Return when `condition` holds for which of the policy's endpoints are in rotation."""
    async with asyncio.timeout(30), rig.control() as control:
        while True:
            [status] = await control.status()
            if condition([one.up for one in status.endpoints]):
                return


async def sticky(rig: GatewayRig, first: str, *urls: str) -> Claim:
    """A rollout whose calls go to `first` while that is in rotation."""
    endpoints = [Endpoint(url) for url in (first, *urls)]
    while True:
        claim = await rig.claim()
        if rank(endpoints, claim.rollout.id)[0].url == first:
            return claim


@asynccontextmanager
async def deaf() -> AsyncIterator[str]:
    """The base URL of an engine that takes requests and never answers one."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/v1"


async def test_a_dead_engine_gets_no_calls_until_it_is_back(
    rig: GatewayRig, caplog: pytest.LogCaptureFixture
) -> None:
    with ModelServer() as healthy:
        with ModelServer() as engine:
            url, port = engine.url, int(engine.url.split(":")[2].split("/")[0])
            await rig.register(url, healthy.url)
            claim = await sticky(rig, url, healthy.url)
            assert (await ask(rig, claim)).endpoint == url
        await until(rig, lambda up: up == [False, True])
        moved = await ask(rig, claim)
        assert (moved.endpoint, moved.upstream_retries) == (healthy.url, 0)
        async with aiohttp.ClientSession() as session, session.get(f"{rig.url}/metrics") as answer:
            metrics = await answer.text()
        labels = f'endpoint="{url}",policy="policy",run="run"'
        assert f"lightningrl_gateway_endpoint_up{{{labels}}} 0.0" in metrics
        with ModelServer(port=port) as back:
            await until(rig, lambda up: up == [True, True])
            assert (await ask(rig, claim)).endpoint == back.url == url
    logged = [one.getMessage() for one in caplog.records if one.levelno == logging.WARNING]
    assert next(one for one in logged if url in one).startswith(
        f"endpoint {url} is out of rotation after 2 failures"
    )
    assert f"endpoint {url} answers again and is back in rotation" in logged


async def test_a_call_that_waits_for_an_engine_that_hangs_goes_to_another(
    rig: GatewayRig,
) -> None:
    async with deaf() as url:
        with ModelServer() as healthy:
            await rig.register(url, healthy.url)
            call = await ask(rig, await sticky(rig, url, healthy.url))
    assert (call.endpoint, call.upstream_retries) == (healthy.url, 1)


async def test_an_engine_that_says_it_is_ill_is_out_of_rotation(rig: GatewayRig) -> None:
    async def ill(scope: object, receive: object, send: object) -> None:
        await send({"type": "http.response.start", "status": 503, "headers": []})  # type: ignore[operator]
        await send({"type": "http.response.body", "body": b"the engine is dead"})  # type: ignore[operator]

    async with serve(ill) as server:
        with ModelServer() as healthy:
            await rig.register(f"{server}/v1", healthy.url)
            await ask(rig, await rig.claim())
            await until(rig, lambda up: up == [False, True])
            claim = await sticky(rig, f"{server}/v1", healthy.url)
            call = await ask(rig, claim)
    assert (call.endpoint, call.upstream_retries) == (healthy.url, 0)


async def test_the_only_engine_is_asked_though_it_is_out_of_rotation(rig: GatewayRig) -> None:
    with ModelServer() as engine:
        port = int(engine.url.split(":")[2].split("/")[0])
        await rig.register(engine.url)
        claim = await rig.claim()
        await ask(rig, claim)
    await until(rig, lambda up: up == [False])
    calling = asyncio.create_task(ask(rig, claim))
    with ModelServer(port=port):
        assert (await calling).endpoint == engine.url


class Hours:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def now(self) -> datetime:
        return datetime.fromtimestamp(self.seconds, UTC)

    def monotonic(self) -> float:
        return self.seconds


def test_endpoints_that_nobody_calls_are_not_asked() -> None:
    clock = Hours()
    health = Health(clock, LIMITS)
    one, two = Endpoint("http://one/v1"), Endpoint("http://two/v1")
    assert health.in_use() == []
    health.choose([one, two])  # it could have been either
    health.failed(one.url, "it broke")
    clock.seconds = IN_USE_SECONDS
    assert health.in_use() == [one, two]
    health.choose([two])
    clock.seconds += 1
    assert health.in_use() == [two]
    assert health.is_up(one.url)  # forgotten with what was known of it
    assert health.failures(one.url) == 0


def test_without_checks_an_endpoint_is_only_avoided_for_a_while() -> None:
    clock = Hours()
    health = Health(clock, GatewayLimits(health_seconds=0, backoff_seconds=1.0))
    one, two = Endpoint("http://one/v1"), Endpoint("http://two/v1")
    for _ in range(5):
        assert health.choose([one]) == one
        health.failed(one.url, "it broke")
    assert health.choose([one, two]) == two
    clock.seconds += 4.0  # backoff_limit_seconds
    assert health.choose([one, two]) == one


@pytest.mark.parametrize(
    ("path", "asked"),
    [("/health", "http://h:1/health"), ("models", "http://h:1/api/v1/models")],
)
def test_a_health_path_is_of_the_host_or_below_the_base_url(path: str, asked: str) -> None:
    assert url_at("http://h:1/api/v1/", path) == asked
