"""A refused request leaves a trace, whatever its agent makes of the error."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from lightningrl.cli.doctor import gather_evidence
from lightningrl.cli.stored_run import StoredRun
from lightningrl.gateway.control import Refused
from lightningrl.gateway.refusals import MOST_TOLD
from lightningrl.schema import Claim, LogEvent, LogTopic
from lightningrl_testkit.gateway import RUN, GatewayRig, open_rig
from lightningrl_testkit.model_server import ModelServer

CHAT = {"model": "m", "messages": [{"role": "user", "content": "Hi"}]}


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[GatewayRig]:
    async with open_rig(tmp_path) as rig:
        yield rig


async def post(url: str, key: str, body: dict[str, Any]) -> int:
    headers = {"authorization": f"Bearer {key}"}
    async with (
        aiohttp.ClientSession() as session,
        session.post(url, json=body, headers=headers) as response,
    ):
        return response.status


async def told(rig: GatewayRig, claim: Claim) -> list[str]:
    """What the attempt's log says of refusals."""
    (events,) = await rig.store.events([claim.attempt.id])
    return [
        one.message for one in events if isinstance(one, LogEvent) and one.topic is LogTopic.REFUSED
    ]


async def test_calls_that_nothing_places_are_counted(rig: GatewayRig) -> None:
    url = f"{rig.url}/v1/chat/completions"
    for _ in range(2):
        assert await post(url, "lightningrl-placeholder", CHAT) == 401
    assert await post(url, "anything", CHAT) == 401
    async with aiohttp.ClientSession() as session, session.get(f"{rig.url}/v1/models") as response:
        assert response.status == 401  # nobody lost an answer
    assert rig.gateway.unidentified == {"library": 2, "elsewhere": 1}
    async with rig.control() as control:
        told = await control.refused()
    assert (told.unidentified, told.by_origin) == (3, rig.gateway.unidentified)
    assert Refused(2).by_origin == {"": 2}
    found = await gather_evidence(StoredRun(RUN, rig.store, None), rig.url)
    assert found.unidentified == rig.gateway.unidentified


async def test_an_attempts_refusals_are_in_its_log(rig: GatewayRig) -> None:
    with ModelServer() as engine:
        await rig.register(engine.url, replaces=("m",))
        claim = await rig.claim()
        base = rig.attempt_url(claim)
        other = {**CHAT, "model": "other"}
        assert await post(f"{base}/chat/completions", claim.key, other) == 404
        assert await post(f"{base}/embeddings", claim.key, {"model": "m"}) == 404
        assert await post(f"{base}/chat/completions", claim.key, CHAT) == 200
    first, second = await told(rig, claim)
    assert first.startswith("a request was refused (404, ")
    assert "'other'" in first
    assert second.startswith(
        "a request was refused (404, no_such_route): the gateway does not serve"
    )
    assert rig.gateway.unidentified == {}


async def test_what_the_engine_refuses_is_in_the_calls_record_alone(rig: GatewayRig) -> None:
    with ModelServer() as engine:
        await rig.register(engine.url)
        claim = await rig.claim()
        engine.fail_next(1, status=400)
        assert await post(f"{rig.attempt_url(claim)}/chat/completions", claim.key, CHAT) == 400
    assert len(await rig.calls(claim)) == 1
    assert await told(rig, claim) == []


async def test_a_client_that_asks_for_ever_does_not_fill_the_store(rig: GatewayRig) -> None:
    claim = await rig.claim()
    for _ in range(MOST_TOLD + 5):
        await post(f"{rig.attempt_url(claim)}/embeddings", claim.key, {})
    assert len(await told(rig, claim)) == MOST_TOLD
