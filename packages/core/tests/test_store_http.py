"""The HTTP store when answers get lost, and what travels."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from lightningrl.archive.records import Loader, records_of
from lightningrl.errors import AuthError, ConfigError, StoreUnavailable
from lightningrl.schema import AttemptState
from lightningrl.store import http, wire
from lightningrl.store.base import RolloutQuery
from lightningrl.store.http import HttpStore
from lightningrl.store.sqlite import SqliteStore
from lightningrl_testkit.proxy import AnswerLosingProxy
from lightningrl_testkit.records import call, group, log
from lightningrl_testkit.server import ServerProcess

pytestmark = pytest.mark.usefixtures("forked")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    path: Path = tmp_path_factory.mktemp("store") / "store.db"
    with ServerProcess(path, admin_key="the key") as server:
        yield server


@pytest_asyncio.fixture
async def store(server: ServerProcess) -> AsyncIterator[HttpStore]:
    store = HttpStore.connect(server.url, key="the key")
    yield store
    await store.close()


async def test_a_claim_whose_answer_got_lost_is_answered_again(
    server: ServerProcess, store: HttpStore
) -> None:
    await store.enqueue(group(3, run="lost claim"))
    proxy = AnswerLosingProxy(server.port, losses=2)
    async with proxy as url:
        over_proxy = HttpStore.connect(url, key="the key")
        claims = await over_proxy.claim("worker", run="lost claim", limit=2)
        await over_proxy.close()
    assert proxy.losses_left == 0
    assert [one.rollout.spec.member for one in claims] == [0, 1]
    states = [one.state for one in await store.rollouts(RolloutQuery(run="lost claim"))]
    assert sorted(states) == ["queued", "running", "running"]


async def test_counts_are_right_though_an_answer_got_lost(
    server: ServerProcess, store: HttpStore
) -> None:
    rollouts = group(2, run="lost counts")
    for calling, expected in (("enqueue", 2), ("cancel", 2)):
        async with AnswerLosingProxy(server.port, losses=1) as url:
            over_proxy = HttpStore.connect(url, key="the key")
            if calling == "enqueue":
                assert await over_proxy.enqueue(rollouts) == expected
            else:
                assert await over_proxy.cancel([one.id for one in rollouts]) == expected
            await over_proxy.close()


async def test_appends_and_ends_whose_answers_got_lost_have_their_effect_once(
    server: ServerProcess, store: HttpStore
) -> None:
    await store.enqueue(group(run="lost append"))
    (claim,) = await store.claim("worker", run="lost append")
    attempt = claim.attempt.id
    async with AnswerLosingProxy(server.port, losses=1) as url:
        over_proxy = HttpStore.connect(url, key="the key")
        await over_proxy.append([log(attempt, "1")])
        await over_proxy.close()
    async with AnswerLosingProxy(server.port, losses=1) as url:
        over_proxy = HttpStore.connect(url, key="the key")
        assert (await over_proxy.finish(attempt, AttemptState.SUCCEEDED)).state == "succeeded"
        await over_proxy.close()
    assert await store.events([attempt]) == [[log(attempt, "1")]]


async def test_long_requests_and_answers_travel_compressed_and_whole(store: HttpStore) -> None:
    await store.enqueue(group(run="long"))
    (claim,) = await store.claim("worker", run="long")
    event = call(claim.attempt.id, "1", prompt=range(500_000), answer=range(100_000))
    await store.append([event])
    assert await store.events([claim.attempt.id]) == [[event]]


async def test_the_wrong_key_is_refused_and_not_repeated(server: ServerProcess) -> None:
    for key in (None, "another key"):
        store = HttpStore.connect(server.url, key=key)
        with pytest.raises(AuthError, match="admin key") as refusal:
            await store.secret()
        assert "the key" not in str(refusal.value)
        await store.close()


async def test_a_server_that_is_not_there_is_unavailable() -> None:
    async with AnswerLosingProxy(port=1, losses=0) as url:
        pass  # now the port is free again
    store = HttpStore.connect(url, retry_seconds=0.1)
    with pytest.raises(StoreUnavailable, match=rf"{url}.*lightningrl serve"):
        await store.runs()
    await store.close()


async def test_what_is_no_store_is_named(server: ServerProcess) -> None:
    store = HttpStore.connect(server.url + "/healthz")
    with pytest.raises(StoreUnavailable, match="is no store"):
        await store.runs()
    await store.close()


async def test_a_closed_connection_is_unavailable(server: ServerProcess) -> None:
    store = HttpStore.connect(server.url, key="the key")
    await store.runs()
    await store.close()
    await store.close()
    with pytest.raises(StoreUnavailable, match="closed"):
        await store.runs()


def test_every_method_of_the_contract_travels() -> None:
    assert set(wire.METHODS) == {
        *("enqueue", "claim", "heartbeat", "append", "finish", "cancel", "expire", "extend"),
        *("renew_all_leases", "rollouts", "attempts", "attempt", "events", "ended", "progress"),
        *("summary", "runs", "put_policy", "policies", "workers", "take", "commit", "roll_back"),
        "give_live",
        *("ledger", "secret", "now", "retry", "wait", "calls"),
        *("put_resource", "resource", "resources", "groups", "tasks", "statistics"),
        *("delete_rollouts", "delete_run", "retain", "dump", "load"),
        *("see_gateway", "forget_gateway", "gateways"),
    }


async def test_what_speaks_no_http_is_named() -> None:
    async def speak(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 mail.example ESMTP\r\n")
        writer.close()

    async with await asyncio.start_server(speak, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        store = HttpStore.connect(f"http://127.0.0.1:{port}")
        with pytest.raises(StoreUnavailable, match="no HTTP"):
            await store.runs()
        await store.close()


async def test_a_url_that_is_none_is_named() -> None:
    store = HttpStore.connect("http://")
    with pytest.raises(ConfigError, match="no URL"):
        await store.runs()
    await store.close()


async def test_who_answers_too_late_is_asked_again_and_told_of(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(http, "_ANSWER_SECONDS", 0.5)
    asked: list[asyncio.StreamWriter] = []
    silent = await asyncio.start_server(lambda _, writer: asked.append(writer), "127.0.0.1", 0)
    port = silent.sockets[0].getsockname()[1]
    store = HttpStore.connect(f"http://127.0.0.1:{port}", retry_seconds=0.1)
    with pytest.raises(StoreUnavailable, match=r"did not answer within 0\.5 s"):
        await store.runs()
    assert len(asked) > 1  # although the first try took longer than all are to take
    await store.close()
    for one in asked:
        one.close()
    silent.close()


async def test_large_rollouts_are_imported_over_http(store: HttpStore, tmp_path: Path) -> None:
    origin = SqliteStore.open(tmp_path / "origin.db")
    await origin.enqueue(group(9, run="large"))
    for claim in await origin.claim("worker", limit=9):  # 72 MiB, and a request holds 64
        await origin.append([log(claim.attempt.id, "1", "x" * (8 << 20))])
    loader = Loader(store)
    async for record in records_of(origin, "large"):
        await loader.add(record)
    assert await loader.end() == 9
    await origin.close()
