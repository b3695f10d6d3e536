"""What happens now, of a server that was given by its URL and of a store that is only a file."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from pathlib import Path

import pytest_asyncio
from test_ui_screens import Page, links, told

from lightningrl.gateway.control import GatewayClient
from lightningrl.schema import AttemptState, Endpoint, Policy
from lightningrl.store.http import HttpStore
from lightningrl.store.sqlite import SqliteStore
from lightningrl_testkit.model_server import ModelServer
from lightningrl_testkit.records import group, reward
from lightningrl_testkit.server import serving
from lightningrl_testkit.store_model import ManualClock

TABLES = {"policies": 1, "runners": 1, "running": 2, "queued": 1, "groups": 1}
"""Of three rollouts of one group, two of which run."""


@pytest_asyncio.fixture
async def server(tmp_path: Path) -> AsyncGenerator[str]:
    with serving(str(tmp_path / "s.db")) as (url, _):
        yield url


async def test_a_server_tells_what_waits_for_what(server: str) -> None:
    store, page = HttpStore.connect(server), Page(server)
    with ModelServer() as engine:
        async with GatewayClient(server) as control:
            await control.register(Policy("policy", "run", 0, (Endpoint(engine.url),)))
            await store.enqueue(group(3, run="run", task="<b>hard</b>"))
            (run,) = links(await page.get("/"), "run")
            (address,) = (one for one in links(await page.get(run), "live"))
            text = told(await page.get(address))
            assert "3 queued rollouts wait for a runner: none asked for this run's" in text
            assert "Iteration 1 waits for 3 rollouts in 1 groups." in text
            assert "policy 0 open 0 0" in text
            pulse = await page.get("/live/pulse?run=run")
            assert await page.get("/live/pulse?run=run") == pulse
            (claim, _) = await store.claim("worker-1", run="run", limit=2, lease_seconds=60)
            assert await page.get("/live/pulse?run=run") != pulse
            shown = await page.get(address)
            assert "<b>hard" not in shown
            text = told(shown)
            assert "1 queued rollouts wait for room at 1 runners, which hold 2 now." in text
            assert "2 running rollouts at least have no model call under way" in text
            assert "<b>hard</b> #0 train, iteration 1 1 worker-1" in text
            tables = {one: await page.table(f"/live?run=run&as=csv&table={one}") for one in TABLES}
            assert {name: len(rows) for name, rows in tables.items()} == TABLES
            assert tables["running"][0]["task"] == "<b>hard</b>"
            assert tables["policies"][0]["up"] == "True"
            assert "use one of policies" in await page.get("/live?run=run&as=csv&table=x", 400)
            await control.hold("run", "policy", hold_seconds=60, drain_seconds=0)
            text = told(await page.get(address))
            assert "Policy policy is held: 0 calls wait for its new weights." in text
            await store.append([reward(claim.attempt.id, 1.0)])
            await store.finish(claim.attempt.id, AttemptState.SUCCEEDED)
            assert "waits for 2 rollouts" in told(await page.get(address))
    await page.close()
    await store.close()


async def test_a_file_tells_all_but_what_the_gateway_does(tmp_path: Path) -> None:
    clock = ManualClock()
    store = SqliteStore.open(tmp_path / "s.db", clock=clock)
    await store.enqueue(group(2, run="run"))
    await store.put_policy(Policy("policy", "run", 3, (Endpoint("http://engine/v1"),)))
    # The writer lives in January 2026: by the clock of whoever looks, the lease is over.
    await store.claim("worker-1", limit=1, lease_seconds=60)
    page = Page(tmp_path / "s.db")
    assert "known to the run's server alone: give" in told(await page.get("/live?run=run"))
    store.announce("http://127.0.0.1:8787")
    text = told(await page.get("/live?run=run"))
    assert "known to the run's server alone (last at http://127.0.0.1:8787): give" in text
    assert "policy 3 pass - - http://engine/v1" in text
    assert "1 running rollouts wait to be tried again: their runner let the lease expire." in text
    await page.close()
    await store.close()
