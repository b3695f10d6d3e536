"""Who may do what at a server: scopes of keys, their rotation, and versions of clients."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest
from msgspec.structs import replace

from lightningrl.errors import AuthError, ConfigError
from lightningrl.keys import AccessKeys, Scope, ViewerKey
from lightningrl.schema import (
    AttemptId,
    AttemptState,
    CallEvent,
    CallStatus,
    Endpoint,
    Mode,
    Policy,
)
from lightningrl.server.access import RUNNER_METHODS, VIEWER_METHODS, check_version, served_by
from lightningrl.store import RolloutQuery, open_store, wire
from lightningrl.store.base import GroupQuery
from lightningrl.store.http import HttpStore
from lightningrl_testkit.model_server import ModelServer
from lightningrl_testkit.records import group, log
from lightningrl_testkit.server import ServerProcess

pytestmark = pytest.mark.usefixtures("forked")

ADMIN, ADMIN_BEFORE, RUNNER = "admin-key-2", "admin-key-1", "runner-key-1"
VIEWER, VIEWER_OF_ONE = "viewer-key-1", "viewer-key-2"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    path: Path = tmp_path_factory.mktemp("store") / "store.db"
    viewers = f"{VIEWER}\n{VIEWER_OF_ONE} mine other"
    admins = f"{ADMIN}\n{ADMIN_BEFORE}"
    with ServerProcess(path, admin_key=admins, runner_key=RUNNER, viewer_key=viewers) as server:
        yield server


def test_a_key_has_the_scope_that_it_was_given() -> None:
    keys = AccessKeys(admin=("a", "ä"), runner=("r",))
    assert [keys.scope(one) for one in ("a", "ä", "r")] == [Scope.ADMIN, Scope.ADMIN, Scope.RUNNER]
    assert [keys.scope(one) for one in ("", "A", None, "a ", "\udcff")] == [None] * 5


def test_a_viewers_key_may_name_runs() -> None:
    viewers = tuple(map(ViewerKey.read, ("all", "some a b", "some c", "both a", "both")))
    keys = AccessKeys(admin=("x",), viewer=viewers)
    assert keys.scope("all") is Scope.VIEWER
    found = [keys.access(key) for key in ("all", "some", "both", "some a b", "none")]
    assert [one and one.runs for one in found] == [None, {"a", "b", "c"}, None, None, None]
    assert found[3] is None


def test_without_keys_everyone_is_an_admin() -> None:
    assert AccessKeys().scope(None) is Scope.ADMIN


async def test_a_runner_works_with_its_own_key(server: ServerProcess) -> None:
    admin, runner = (HttpStore.connect(server.url, key=key) for key in (ADMIN, RUNNER))
    await admin.enqueue(group(run="work"))
    (claim,) = await runner.claim("worker", run="work")
    attempt = claim.attempt.id
    assert await runner.heartbeat("worker", [attempt]) == []
    await runner.append([log(attempt, "1")])
    assert await runner.events([attempt]) == [[log(attempt, "1")]]
    assert (await runner.finish(attempt, AttemptState.SUCCEEDED)).state == "succeeded"
    await asyncio.gather(admin.close(), runner.close())


@pytest.mark.parametrize(
    ("key", "method"),
    [(RUNNER, one) for one in sorted(set(wire.METHODS) - RUNNER_METHODS)]
    + [(VIEWER, one) for one in sorted(set(wire.METHODS) - VIEWER_METHODS)],
)
async def test_such_a_key_can_do_nothing_else(server: ServerProcess, key: str, method: str) -> None:
    async with aiohttp.ClientSession() as http:
        headers = {"authorization": f"Bearer {key}"}
        async with http.post(server.url + wire.PREFIX + method, headers=headers) as response:
            error = msgspec.msgpack.decode(await response.read())["error"]
    assert (response.status, error["code"]) == (401, "auth")
    assert method in error["message"]
    assert key not in error["message"]


def test_what_a_runner_may_do_is_what_it_needs() -> None:
    assert set(wire.METHODS) - RUNNER_METHODS >= {
        *("cancel", "retry", "put_policy", "put_resource", "take", "commit", "roll_back", "secret"),
        *("expire", "extend", "renew_all_leases"),
    }


async def test_a_viewer_of_some_runs_reads_those_alone(server: ServerProcess) -> None:
    admin, every, some = (
        HttpStore.connect(server.url, key=key) for key in (ADMIN, VIEWER, VIEWER_OF_ONE)
    )
    attempts: dict[str, AttemptId] = {}
    for run in ("mine", "theirs"):
        await admin.enqueue(group(run=run))
        (claim,) = await admin.claim("worker", run=run)
        attempts[run] = claim.attempt.id
        endpoints = (Endpoint("http://engine/v1", key="the engine's"),)
        await admin.put_policy(Policy(name="p", run=run, version=1, endpoints=endpoints))
    assert {"mine", "theirs"} <= set(await every.runs())
    assert await some.runs() == ["mine"]
    assert [one.run for one in await some.policies()] == ["mine"]
    assert [one.key for one in (await every.policies("theirs"))[0].endpoints] == [None]
    assert len(await some.rollouts(RolloutQuery(run="mine"))) == 1
    ids = {run: group(run=run)[0].id for run in attempts}

    def reads(run: str) -> list[Coroutine[Any, Any, Any]]:
        mode = Mode.TRAIN
        return [
            *(some.rollouts(RolloutQuery(run=run)), some.groups(GroupQuery(run=run))),
            *(some.tasks(GroupQuery(run=run)), some.attempts([ids[run]]), some.ended(run)),
            *(some.attempt(attempts[run]), some.events([attempts[run]])),
            *(some.calls(attempts[run]), some.progress(run, mode, 1), some.summary(run)),
            *(some.statistics(run), some.ledger(run), some.resources(run), some.dump(run)),
        ]

    for read in reads("mine"):
        await read
    foreign = reads("theirs")
    assert len(foreign) == len(
        VIEWER_METHODS - {"runs", "policies", "workers", "gateways", "now", "resource"}
    )
    refused = [*foreign, some.rollouts(RolloutQuery(ids=(ids["mine"],))),
               some.events(list(attempts.values())), some.resource("theirs", "r")]  # fmt: skip
    for read in refused:
        with pytest.raises(AuthError, match="these runs alone: mine, other"):
            await read
    await asyncio.gather(admin.close(), every.close(), some.close())


async def test_a_runner_enqueues_live_rollouts_alone(server: ServerProcess) -> None:
    runner = HttpStore.connect(server.url, key=RUNNER)
    assert await runner.enqueue(group(run="live", mode=Mode.LIVE)) == 1
    with pytest.raises(AuthError, match="live rollouts alone"):
        await runner.enqueue(group(run="live", mode=Mode.TRAIN))
    await runner.close()


async def test_a_runner_loads_live_rollouts_that_have_ended_alone(
    server: ServerProcess, tmp_path: Path
) -> None:
    runner = HttpStore.connect(server.url, key=RUNNER)
    local = open_store(tmp_path / "local.db")
    await local.enqueue(group(2, run="loaded", mode=Mode.LIVE) + group(run="trained", iteration=7))
    first = group(2, run="loaded", mode=Mode.LIVE)[0].id
    (claim,) = await local.claim("worker", rollout_ids=[first])
    await local.finish(claim.attempt.id, AttemptState.SUCCEEDED)
    ended, queued = await local.dump("loaded", limit=2)
    given = replace(ended.rollout, spec=replace(ended.rollout.spec, iteration=1))
    trained = await local.dump("trained")
    ids = [ended.rollout.id]
    assert await runner.load(rollouts=[ended], completed=ids) == 2
    assert await runner.load(rollouts=[ended], completed=ids) == 0
    for refused in (
        {"rollouts": [queued]},
        {"rollouts": trained},
        {"rollouts": [replace(ended, rollout=given)]},
        {"completed": ids},
        {"resources": [await local.put_resource("loaded", "prompt", "x")]},
    ):
        with pytest.raises(AuthError, match="live rollouts that have ended"):
            await runner.load(**refused)
    await asyncio.gather(runner.close(), local.close())


async def test_a_runner_sees_no_key_of_an_engine(server: ServerProcess) -> None:
    admin, runner = (HttpStore.connect(server.url, key=key) for key in (ADMIN, RUNNER))
    endpoints = (Endpoint("http://engine/v1", key="the engine's"),)
    await admin.put_policy(Policy(name="p", run="seen", version=1, endpoints=endpoints))
    assert [one.key for one in (await admin.policies("seen"))[0].endpoints] == ["the engine's"]
    assert [one.key for one in (await runner.policies("seen"))[0].endpoints] == [None]
    await asyncio.gather(admin.close(), runner.close())


async def test_keys_are_changed_without_a_pause(server: ServerProcess) -> None:
    for key in (ADMIN, ADMIN_BEFORE):
        store = HttpStore.connect(server.url, key=key)
        await store.secret()
        await store.close()


@pytest.mark.parametrize("key", [RUNNER, VIEWER, "wrong", ""])
async def test_policy_control_and_metrics_are_the_admins(server: ServerProcess, key: str) -> None:
    async with aiohttp.ClientSession(headers={"authorization": f"Bearer {key}"}) as http:
        for path in ("/gateway/v1/status", "/metrics"):
            async with http.get(server.url + path) as response:
                assert response.status == 401


HI = {"model": "policy", "messages": [{"role": "user", "content": "hello"}]}


async def status_of(
    http: aiohttp.ClientSession, method: str, url: str, body: object = None
) -> tuple[int, bytes]:
    async with http.request(method, url, json=body) as response:
        return response.status, await response.read()


def closed_to(
    server: str, gateway: str, at: str, elsewhere: str, policy: dict[str, object]
) -> dict[tuple[str, str, int], object]:
    """Method, address and status of what the key of the attempt at `at` does not open -> what is sent."""
    told = {"hold_seconds": 1, "drain_seconds": 0}
    return {
        ("GET", f"{gateway}/status", 401): None,
        ("GET", f"{gateway}/refused", 401): None,
        ("GET", f"{server}/metrics", 401): None,
        ("POST", f"{gateway}/policies/leak/policy", 401): policy,
        ("POST", f"{gateway}/policies/leak/policy/hold", 401): told,
        ("POST", f"{gateway}/policies/leak/policy/publish", 401): {"version": 9},
        ("POST", f"{at}/rewards", 403): {"value": 1.0},
        ("POST", f"{elsewhere}/rewards", 403): {"value": 1.0},
        ("POST", f"{elsewhere}/chat/completions", 403): HI,
        ("GET", f"{elsewhere}/models", 403): None,
        ("POST", f"{at}/embeddings", 404): {"model": "policy", "input": "a"},
        ("GET", f"{at}/chat/completions", 404): None,
    }


async def test_a_leaked_attempt_key_makes_one_attempts_calls_until_its_end_and_nothing_else(
    server: ServerProcess,
) -> None:
    admin = HttpStore.connect(server.url, key=ADMIN)
    await admin.enqueue(group(2, run="leak", timeout_seconds=60.0))
    leaked, other = await admin.claim("worker", run="leak", limit=2)
    gateway = f"{server.url}/gateway/v1"
    at, elsewhere = (
        f"{server.url}/rollouts/{one.rollout.id}/attempts/{one.attempt.id}/v1"
        for one in (leaked, other)
    )
    async with contextlib.AsyncExitStack() as stack:
        engine = stack.enter_context(ModelServer())
        owner, thief = [
            await stack.enter_async_context(
                aiohttp.ClientSession(headers={"authorization": f"Bearer {key}"})
            )
            for key in (ADMIN, leaked.key)
        ]
        policy = {"name": "policy", "run": "leak", "version": 0, "endpoints": [{"url": engine.url}]}
        registered, _ = await status_of(owner, "POST", f"{gateway}/policies/leak/policy", policy)
        assert registered == 200
        assert (await status_of(thief, "POST", f"{at}/chat/completions", HI))[0] == 200

        for method in sorted(wire.METHODS):
            status, body = await status_of(thief, "POST", server.url + wire.PREFIX + method)
            assert (status, msgspec.msgpack.decode(body)["error"]["code"]) == (401, "auth"), method
        refused = closed_to(server.url, gateway, at, elsewhere, policy)
        for (method, url, status), sent in refused.items():
            assert (await status_of(thief, method, url, sent))[0] == status, (method, url)

        await admin.finish(leaked.attempt.id, AttemptState.SUCCEEDED)
        for url in (f"{at}/chat/completions", f"{server.url}/v1/chat/completions"):
            assert (await status_of(thief, "POST", url, HI))[0] == 409
    mine, others = await admin.events([leaked.attempt.id, other.attempt.id])
    calls = [one for one in mine if isinstance(one, CallEvent)]
    assert ([one.status for one in calls], others) == ([CallStatus.DELIVERED], [])
    await admin.close()


async def test_no_key_is_ever_logged(tmp_path: Path) -> None:
    keys = {"admin": "admin-secret-1", "runner": "runner-secret-2", "wrong": "wrong-secret-3"}
    server = ServerProcess(
        tmp_path / "store.db",
        admin_key=keys["admin"],
        runner_key=keys["runner"],
        log_level="debug",
    )
    with server:
        for key in keys.values():
            async with aiohttp.ClientSession(headers={"authorization": f"Bearer {key}"}) as http:
                for path in ("/store/v1/runs", f"/keys/{key}/v1/models", "/gateway/v1/status"):
                    async with http.post(server.url + path, data=b"\x80") as response:
                        assert key.encode() not in await response.read()
        store = HttpStore.connect(server.url, key=keys["admin"])
        await store.enqueue(group())
        (claim,) = await store.claim("worker")
        await store.close()
        output = server.stop()
    assert server.url in output  # the log was on
    assert [one for one in (*keys.values(), claim.key) if one in output] == []


@pytest.mark.parametrize(
    ("server", "client", "served"),
    [
        ("0.3.0", "0.3.7", True),
        ("0.3.0", "0.2.9", True),
        ("0.3.0", "0.1.0", False),
        ("0.3.0", "0.4.0", False),
        ("1.0.0", "0.9.0", False),
        ("1.1.0", "1.0.3", True),
        ("0.3.0.dev1", "0.3.0rc2", True),
        ("0.3.0", "three", False),
        ("0.3.0", "", False),
    ],
)
def test_own_and_previous_minor_version_are_served(server: str, client: str, served: bool) -> None:
    assert served_by(server, client) is served


def test_another_version_is_refused_by_name() -> None:
    check_version({})
    check_version({wire.VERSION_HEADER.encode(): wire.own_version().encode()})
    with pytest.raises(ConfigError, match=rf"LightningRL {wire.own_version()} .*'7.0.0'"):
        check_version({wire.VERSION_HEADER.encode(): b"7.0.0"})


async def test_a_client_says_its_version(server: ServerProcess) -> None:
    headers = {"authorization": f"Bearer {ADMIN}", wire.VERSION_HEADER: "99.0.0"}
    async with (
        aiohttp.ClientSession(headers=headers) as http,
        http.post(server.url + wire.PREFIX + "runs", data=b"\x80") as response,
    ):
        assert response.status == 400
        assert "99.0.0" in (await response.read()).decode(errors="replace")
