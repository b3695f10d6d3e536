"""A hold at a real gateway that lasts longer than its lease."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from lightningrl.gateway.control import GatewayClient, Held, PolicyStatus
from lightningrl.recipe import parse_recipe
from lightningrl.schema import Endpoint, Policy
from lightningrl.store import Store, open_store
from lightningrl_verl.serving.hold import Hold

pytestmark = pytest.mark.usefixtures("forked")

SERVER = """
import sys
from lightningrl.server import serve
serve(sys.argv[1], ready=lambda url: print(url, flush=True))
"""

RECIPE = parse_recipe(
    {"name": "demo", "agent": "a:b", "gateway": {"hold_seconds": 2.0, "drain_seconds": 0.5}}
)


@pytest.fixture
def url(tmp_path: Path) -> Iterator[str]:
    command = [sys.executable, "-c", SERVER, str(tmp_path / "store.db")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield process.stdout.readline().strip()
        process.terminate()


@pytest_asyncio.fixture
async def server(url: str) -> AsyncIterator[tuple[Store, GatewayClient]]:
    store = open_store(url)
    async with GatewayClient(url) as gateway:
        endpoint = Endpoint("http://127.0.0.1:9/v1")
        await gateway.register(Policy("policy", "demo", 3, (endpoint,)))
        yield store, gateway
    await store.close()


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


class SlowToDrain(GatewayClient):
    """A gateway whose first hold comes back 600 seconds after it was sent, by a clock of its own."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.now = 0.0
        self.renewed = asyncio.Event()

    async def hold(self, run: str, name: str, *, hold_seconds: float, drain_seconds: float) -> Held:
        held = await super().hold(run, name, hold_seconds=hold_seconds, drain_seconds=drain_seconds)
        if self.now:
            self.renewed.set()
        self.now = 600.0
        return held


@pytest.mark.usefixtures("server")
async def test_a_lease_is_renewed_in_time_after_a_long_drain(url: str) -> None:
    lease = {"hold_seconds": 900.0, "drain_seconds": 600.0}
    recipe = parse_recipe({"name": "demo", "agent": "a:b", "gateway": lease})
    async with SlowToDrain(url) as slow:
        hold = Hold(recipe, "policy", slow, clock=lambda: slow.now)
        await hold.begin()
        # It was due after 900 / 3 seconds, which have passed.
        await asyncio.wait_for(slow.renewed.wait(), timeout=60)
        await hold.end(4, changed=True)
