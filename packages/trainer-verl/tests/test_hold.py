"""A hold at a real gateway that lasts longer than its lease."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest_asyncio

from lightningrl.gateway.control import GatewayClient, PolicyStatus
from lightningrl.recipe import parse_recipe
from lightningrl.schema import Endpoint, Policy
from lightningrl.store import Store, open_store
from lightningrl_verl.training.hold import Hold

SERVER = """
import sys
from lightningrl.server import serve
serve(sys.argv[1], ready=lambda url: print(url, flush=True))
"""

RECIPE = parse_recipe(
    {"name": "demo", "agent": "a:b", "gateway": {"hold_seconds": 2.0, "drain_seconds": 0.5}}
)


@pytest_asyncio.fixture
async def server(tmp_path: Path) -> AsyncIterator[tuple[Store, GatewayClient]]:
    command = [sys.executable, "-c", SERVER, str(tmp_path / "store.db")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:  # noqa: ASYNC220 - a fixture
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        store = open_store(url)
        async with GatewayClient(url) as gateway:
            endpoint = Endpoint("http://127.0.0.1:9/v1")
            await gateway.register(Policy("policy", "demo", 3, (endpoint,)))
            yield store, gateway
        await store.close()
        process.terminate()


async def _status(gateway: GatewayClient) -> PolicyStatus:
    [found] = await gateway.status()
    return found


async def _until(store: Store) -> float:
    """When the lease runs out."""
    [policy] = await store.policies("demo")
    assert policy.held_until is not None
    return policy.held_until.timestamp()


async def test_a_hold_is_renewed_until_its_end_and_not_after(
    server: tuple[Store, GatewayClient],
) -> None:
    store, gateway = server
    hold = Hold(RECIPE, "policy", gateway)
    await hold.begin()
    await hold.begin()  # the same one
    first = await _until(store)
    while await _until(store) < first + RECIPE.gateway.hold_seconds:
        pass  # so long it would not have lasted by itself
    assert (await _status(gateway)).held
    await hold.end(4, changed=True)
    assert ((await _status(gateway)).state, (await _status(gateway)).version) == ("open", 4)

    await hold.begin()
    assert (await _status(gateway)).state == "held"
    await hold.end(4, changed=False)
    assert ((await _status(gateway)).state, (await _status(gateway)).version) == ("open", 4)

    await hold.begin()
    hold.abandon()
    last = await _until(store)
    while (await _status(gateway)).state == "held":
        assert await _until(store) == last
    assert (await _status(gateway)).state == "expired"
