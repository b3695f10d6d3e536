"""Whose call it is and which policy answers: proven or declared, else refused with a remedy."""

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import aiohttp
import openai
import pytest
from yarl import URL

from lightningrl.capture.variables import PLACEHOLDER_KEY
from lightningrl.errors import AuthError, ConfigError, Conflict, NotFound
from lightningrl.gateway import Gateway, GatewayLimits
from lightningrl.keys import sign_attempt_key
from lightningrl.machine.clock import SystemClock
from lightningrl.schema import AttemptId, AttemptState, Claim, Endpoint, Policy
from lightningrl_testkit.gateway import GatewayRig, open_rig, serve
from lightningrl_testkit.model_server import ModelServer

HI = [{"role": "user", "content": "Hi"}]


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[GatewayRig]:
    async with open_rig(tmp_path) as rig:
        yield rig


EXTRA = ("user-agent", "x-lightningrl-agent", "x-lightningrl-outside", "x-stainless-lang")


async def post(base_url: str, key: str | None = None, **fields: Any) -> tuple[int, dict[str, Any]]:
    """Status and body of one call at `base_url`."""
    headers = {} if key is None else {"authorization": f"Bearer {key}"}
    headers |= {name: fields.pop(name) for name in EXTRA if name in fields}
    async with (
        aiohttp.ClientSession() as session,
        session.post(
            base_url + "/chat/completions",
            json={"model": "m", "messages": HI, **fields},
            headers=headers,
        ) as response,
    ):
        return response.status, await response.json()


async def refused(base_url: str, key: str | None = None, **fields: Any) -> tuple[int, str, str]:
    """Status, code and message of a refused call."""
    status, body = await post(base_url, key, **fields)
    error = body["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return status, error["code"], error["message"]


# -- identity ----------------------------------------------------------------------------------


async def test_attempt_url_bearer_key_and_key_in_the_url_name_the_same_attempt(
    rig: GatewayRig,
) -> None:
    with ModelServer() as engine:
        await rig.register(engine.url)
        claim = await rig.claim()
        await rig.claim()  # another attempt runs beside it
        for base_url, key in [
            (rig.attempt_url(claim), claim.key),
            (f"{rig.url}/v1", claim.key),
            (f"{rig.url}/keys/{claim.key}/v1", None),
            (f"{rig.url}/keys/{claim.key}/v1", "sk-placeholder"),
        ]:
            status, _ = await post(base_url, key)
            assert status == 200
    assert len(await rig.calls(claim)) == 4


async def test_without_a_valid_key_a_call_is_refused_and_told_how_to_identify(
    rig: GatewayRig,
) -> None:
    claim = await rig.claim()
    forged = sign_attempt_key(b"x", claim.attempt.id, SystemClock().now() + timedelta(hours=1))
    expired = sign_attempt_key(
        await rig.store.secret(), claim.attempt.id, SystemClock().now() - timedelta(seconds=5)
    )
    for base_url in (rig.attempt_url(claim), f"{rig.url}/v1"):
        for key in (None, "sk-placeholder", forged, expired):
            status, code, message = await refused(base_url, key)
            assert (status, code) == (401, "unidentified")
            assert "LIGHTNINGRL_ATTEMPT_URL" in message
            assert not key or key not in message


async def test_a_runners_placeholder_is_told_what_to_do(rig: GatewayRig) -> None:
    cases = (
        (
            {"x-lightningrl-outside": "thread"},
            "a thread that no rollout started",
            "lightningrl.bind(function)",
        ),
        ({"x-lightningrl-outside": "ended"}, "a rollout that has ended", "end it with the agent"),
        ({"x-lightningrl-outside": "reward"}, "by the reward function", "export the judge's"),
        ({"x-lightningrl-outside": "main"}, "a module was imported", "inside the agent"),
        ({"x-stainless-lang": "python"}, "a child process", "**lightningrl.environment()"),
        ({"user-agent": "litellm/1.110 x"}, "through 'litellm/1.110'", "as a `command`"),
    )
    for headers, where, remedy in cases:
        status, code, message = await refused(f"{rig.url}/v1", PLACEHOLDER_KEY, **headers)
        assert (status, code) == (401, "unidentified")
        assert where in message
        assert remedy in message
        # A function agent's process has no such variable.
        assert "LIGHTNINGRL_ATTEMPT_URL" not in message


async def test_a_key_of_another_attempt_than_the_urls_is_forbidden(rig: GatewayRig) -> None:
    mine, other = await rig.claim(), await rig.claim()
    status, code, _ = await refused(rig.attempt_url(mine), other.key)
    assert (status, code) == (403, "key_of_another_attempt")


async def test_an_attempt_of_another_rollout_than_the_urls_is_refused(rig: GatewayRig) -> None:
    claim = await rig.claim()
    base_url = f"{rig.url}/rollouts/r-other/attempts/{claim.attempt.id}/v1"
    assert (await refused(base_url, claim.key))[:2] == (404, "rollout_not_found")


async def test_an_ended_attempt_is_refused_before_the_engine_is_asked(rig: GatewayRig) -> None:
    with ModelServer() as engine:
        await rig.register(engine.url)
        claim = await rig.claim()
        await rig.store.finish(claim.attempt.id, AttemptState.SUCCEEDED)
        status, code, message = await refused(rig.attempt_url(claim), claim.key)
        assert engine.calls == 0
    assert (status, code) == (409, "attempt_ended")
    assert "succeeded" in message


async def test_an_attempt_that_ends_during_its_call_gets_no_answer_and_no_record(
    rig: GatewayRig,
) -> None:
    with ModelServer() as engine:
        await rig.register(engine.url)
        claim = await rig.claim()
        engine.block()
        async with openai.AsyncOpenAI(base_url=rig.attempt_url(claim), api_key=claim.key) as client:
            calling = asyncio.create_task(client.chat.completions.create(model="m", messages=HI))
            await engine.arrived(1)
            await rig.store.finish(claim.attempt.id, AttemptState.SUCCEEDED)
            engine.unblock()
            with pytest.raises(openai.ConflictError, match="not running any more"):
                await calling
        assert engine.calls == 1  # the SDK was told not to try again
    assert await rig.calls(claim) == []


async def test_a_keyless_gateway_takes_the_attempt_url_alone(tmp_path: Path) -> None:
    with ModelServer() as engine:
        async with open_rig(tmp_path, require_keys=False) as rig:
            await rig.register(engine.url)
            mine, other = await rig.claim(), await rig.claim()
            assert (await post(rig.attempt_url(mine)))[0] == 200
            assert (await post(rig.attempt_url(mine), "sk-placeholder"))[0] == 200
            assert (await post(rig.attempt_url(mine), other.key))[0] == 403
            assert (await post(f"{rig.url}/v1"))[0] == 401
            unknown = f"{rig.url}/rollouts/r/attempts/a-none/v1"
            assert (await refused(unknown))[:2] == (404, "attempt_not_found")
            assert len(await rig.calls(mine)) == 2


# -- which policy answers ----------------------------------------------------------------------


async def test_a_sole_policy_that_declares_nothing_answers_for_any_model(rig: GatewayRig) -> None:
    with ModelServer() as engine:
        await rig.register(engine.url)
        claim = await rig.claim()
        assert (await post(f"{rig.url}/v1", claim.key, model="anything"))[0] == 200


async def test_agents_win_over_aliases_and_replaced_models(rig: GatewayRig) -> None:
    with ModelServer() as engine:
        await rig.register(engine.url, name="writer", replaces=("gpt-5",), agents=("Author",))
        await rig.register(
            engine.url, name="critic", replaces=("gpt-5-mini",), agents=("Judge", "team/x/y")
        )
        claim = await rig.claim()
        for model, agent, policy in [
            ("writer", None, "writer"),
            ("gpt-5", None, "writer"),
            ("gpt-5", "nobody", "writer"),
            ("gpt-5-mini", None, "critic"),
            ("gpt-5", "Judge", "critic"),
            ("writer", "Judge", "critic"),
            ("unheard-of", "Author", "writer"),
            ("gpt-5", "Author/Judge", "critic"),
            ("gpt-5", "team/x%2Fy", "critic"),
            ("gpt-5", "other/x%2Fy", "writer"),
        ]:
            header = {} if agent is None else {"x-lightningrl-agent": agent}
            status, _ = await post(f"{rig.url}/v1", claim.key, model=model, **header)
            assert status == 200
            assert (await rig.calls(claim))[-1].policy == policy
            assert engine.arrivals[-1].body["model"] == policy


async def test_an_undeclared_model_is_refused_and_told_how_to_declare_it(rig: GatewayRig) -> None:
    claim = await rig.claim()
    status, code, message = await refused(f"{rig.url}/v1", claim.key)
    assert (status, code) == (404, "model_not_found")
    assert "has no policy" in message
    await rig.register("http://127.0.0.1:9/v1", name="writer", replaces=("gpt-5",))
    status, _, message = await refused(f"{rig.url}/v1", claim.key, model="gpt-6")
    assert status == 404
    assert "'gpt-6'" in message
    assert "'writer'" in message
    assert "`replaces`" in message


async def test_models_lists_every_name_that_is_declared(rig: GatewayRig) -> None:
    await rig.register("http://127.0.0.1:9/v1", name="b", replaces=("org/x",))
    await rig.register("http://127.0.0.1:9/v1", name="a", replaces=("y",), max_model_len=512)
    claim = await rig.claim()
    async with openai.AsyncOpenAI(base_url=rig.attempt_url(claim), api_key=claim.key) as client:
        assert [model.id async for model in client.models.list()] == ["a", "b", "org/x", "y"]
        assert (await client.models.retrieve("org/x")).id == "org/x"
        assert (await client.models.retrieve("y")).model_extra == {"max_model_len": 512}
        with pytest.raises(openai.NotFoundError, match="answer 'a', 'b', 'org/x', 'y'"):
            await client.models.retrieve("z")


async def test_a_policy_that_answers_every_name_is_found_by_every_name(rig: GatewayRig) -> None:
    await rig.register("http://127.0.0.1:9/v1", name="a")
    claim = await rig.claim()
    async with openai.AsyncOpenAI(base_url=rig.attempt_url(claim), api_key=claim.key) as client:
        assert [model.id async for model in client.models.list()] == ["a"]
        assert (await client.models.retrieve("gpt-4o-mini")).id == "gpt-4o-mini"


async def test_two_policies_of_a_run_cannot_answer_for_one_name(rig: GatewayRig) -> None:
    await rig.register("http://127.0.0.1:9/v1", name="a", replaces=("gpt-5",))
    with pytest.raises(Conflict, match="both answer for 'gpt-5'"):
        await rig.register("http://127.0.0.1:9/v1", name="b", replaces=("gpt-5",))
    with pytest.raises(Conflict, match="both answer for 'a'"):
        await rig.register("http://127.0.0.1:9/v1", name="b", replaces=("a",))


async def test_policy_control_needs_the_admin_key(tmp_path: Path) -> None:
    policy = Policy(name="p", run="run", version=0, endpoints=(Endpoint("http://127.0.0.1:9/v1"),))
    async with open_rig(tmp_path, admin_key="admïn") as rig:
        claim: Claim = await rig.claim()
        for key in (None, "wrong", claim.key):
            async with rig.control(key) as control:
                with pytest.raises(AuthError, match="LIGHTNINGRL_ADMIN_KEY"):
                    await control.register(policy)
        async with rig.control("admïn") as control:
            assert await control.register(policy) == policy


async def test_policy_control_checks_what_it_is_told(rig: GatewayRig) -> None:
    async with rig.control() as control:
        with pytest.raises(ConfigError, match="endpoint"):
            await control.register(Policy(name="p", run="run", version=0, endpoints=()))
        with pytest.raises(ConfigError, match="give its `key` instead") as refused:
            await rig.register("http://user:secret@127.0.0.1:9/v1")
        assert "secret" not in str(refused.value)
        await rig.register("http://127.0.0.1:9/v1", name="policy/1")
        with pytest.raises(NotFound, match="Did you mean 'policy/1'"):
            await control.release("run", "policy/2")
        with pytest.raises(ConfigError, match="more than drain_seconds"):
            await control.hold("run", "policy/1", hold_seconds=5, drain_seconds=5)
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{rig.url}/gateway/v1/policies/run/p", data=b'{"endpoint": []}') as response,
    ):
        message = (await response.json())["error"]["message"]
    assert response.status == 400
    assert "Policy has no field 'endpoint'. Did you mean 'endpoints'?" in message


# -- other refusals ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "code", "part"),
    [
        (b"{", "invalid_json", "not JSON"),
        (b'{"model": "m", "messages": ["\xff"]}', "invalid_json", "not JSON"),
        (b'{"model": "m", "messages": [], "x": %s}' % (b"[" * 99999), "invalid_json", "not JSON"),
        (b"[]", "invalid_type", "expected object, but got array"),
        (b'{"messages": []}', "missing_required_parameter", "Missing required parameter: 'model'"),
        (
            b'{"model": "m", "messages": [], "max_tokens": "x"}',
            "invalid_type",
            "for 'max_tokens': expected integer or null, but got string",
        ),
    ],
)
async def test_a_bad_request_is_told_what_is_wrong(
    rig: GatewayRig, body: bytes, code: str, part: str
) -> None:
    claim = await rig.claim()
    headers = {"authorization": f"Bearer {claim.key}"}
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{rig.url}/v1/chat/completions", data=body, headers=headers) as response,
    ):
        error = (await response.json())["error"]
    assert (response.status, error["code"]) == (400, code)
    assert part in error["message"]


async def test_an_unknown_path_is_told_the_routes(rig: GatewayRig) -> None:
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{rig.url}/v1/embeddings", json={}) as response,
    ):
        message = (await response.json())["error"]["message"]
    assert response.status == 404
    assert "POST /v1/chat/completions" in message
    assert "a base URL and key of its own" in message


@pytest.mark.parametrize(
    "path",
    [
        "/rollouts/R/attempts/A/v1/chat/completions",
        "//rollouts/R/attempts/A/v1//chat/completions/",
        "/rollouts/R/attempts/A/v1/v1/chat/completions",
        "/rollouts/R/attempts/A/chat/completions",
        "/rollouts/R/attempts/A/v1/chat/completions/chat/completions",
        "/keys/KEY/chat/completions",
        "/keys/KEY/v1/v1//chat/completions",
        "/v1//chat/completions",
        "/chat/completions",
    ],
)
async def test_a_path_that_can_mean_one_thing_alone_is_taken_so(rig: GatewayRig, path: str) -> None:
    with ModelServer() as engine:
        await rig.register(engine.url)
        claim = await rig.claim()
        names = {"R": claim.rollout.id, "A": claim.attempt.id, "KEY": claim.key}
        plain = "/".join(names.get(part, part) for part in path.split("/"))
        status, _ = await post(
            rig.url + plain.removesuffix("/").removesuffix("/chat/completions"), claim.key
        )
        assert status == 200
    assert len(await rig.calls(claim)) == 1


async def test_a_client_that_tries_a_websocket_is_told_to_use_http(rig: GatewayRig) -> None:
    claim = await rig.claim()
    upgrade = {"connection": "Upgrade", "upgrade": "websocket", "sec-websocket-version": "13"}
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"{rig.attempt_url(claim)}/responses", headers=upgrade) as response,
    ):
        assert response.status == 426
        assert (await response.json())["error"]["code"] == "websockets_unsupported"


@pytest.mark.parametrize(
    ("path", "shown"),
    [
        ("/keys/KEY", "/keys/..."),
        ("/keys/KEY/v1/embeddings", "/keys/.../v1/embeddings"),
        ("//keys//KEY/v1/embeddings", "/keys/.../v1/embeddings"),
        ("/%6Beys/KEY/v1/embeddings", "/%6Beys/.../v1/embeddings"),
        ("/v1%2Fkeys%2FKEY/x", "/.../x"),
        ("/KEY/v1/embeddings", "/.../v1/embeddings"),
    ],
)
async def test_an_unknown_path_is_shown_without_its_key(
    rig: GatewayRig, path: str, shown: str
) -> None:
    claim = await rig.claim()
    url = URL(rig.url + path.replace("KEY", claim.key), encoded=True)
    async with aiohttp.ClientSession() as session, session.post(url, json={}) as response:
        error = (await response.json())["error"]
    assert (response.status, error["code"]) == (404, "no_such_route")
    assert error["message"].startswith(f"the gateway does not serve POST {shown}. What")


async def test_the_log_of_a_failure_has_no_key(
    rig: GatewayRig, caplog: pytest.LogCaptureFixture
) -> None:
    key = (await rig.claim()).key
    never_started = Gateway(rig.store, clock=SystemClock())  # so its first call fails
    async with serve(never_started) as url:
        status, code, _ = await refused(f"{url}/keys/{key}/v1")
    assert (status, code) == (500, "gateway_failed")
    assert "POST /keys/.../v1/chat/completions failed" in caplog.text
    assert key not in caplog.text


async def test_limits_of_body_and_of_calls_per_attempt(tmp_path: Path) -> None:
    limits = GatewayLimits(body_bytes=500, calls_per_attempt=1)
    with ModelServer() as engine:
        async with open_rig(tmp_path, limits=limits) as rig:
            await rig.register(engine.url)
            claim = await rig.claim()
            too_long = await refused(f"{rig.url}/v1", claim.key, user="u" * 500)
            assert too_long[:2] == (413, "body_too_long")
            assert (await post(f"{rig.url}/v1", claim.key))[0] == 200
            assert (await refused(f"{rig.url}/v1", claim.key))[:2] == (429, "call_limit")
            another = await rig.claim()
            assert (await post(f"{rig.url}/v1", another.key))[0] == 200


async def test_limit_of_tokens_per_attempt(tmp_path: Path) -> None:
    limits = GatewayLimits(tokens_per_attempt=1)
    with ModelServer() as engine:
        async with open_rig(tmp_path, limits=limits) as rig:
            await rig.register(engine.url)
            claim = await rig.claim()
            assert (await post(f"{rig.url}/v1", claim.key))[0] == 200  # it goes beyond, unasked
            assert (await refused(f"{rig.url}/v1", claim.key))[:2] == (429, "token_limit")
            another = await rig.claim()
            assert (await post(f"{rig.url}/v1", another.key))[0] == 200


async def test_limits_hold_beyond_a_restart(tmp_path: Path) -> None:
    limits = GatewayLimits(calls_per_attempt=1)
    with ModelServer() as engine:
        async with open_rig(tmp_path, limits=limits) as rig:
            await rig.register(engine.url)
            claim = await rig.claim()
            assert (await post(f"{rig.url}/v1", claim.key))[0] == 200
        async with open_rig(tmp_path, limits=limits) as rig:
            for _ in range(2):
                status, code, message = await refused(f"{rig.url}/v1", claim.key)
                assert (status, code) == (429, "call_limit")
                assert "LIGHTNINGRL_GATEWAY_CALLS_PER_ATTEMPT" in message
            assert engine.calls == 2  # the store was asked once
            assert len(await rig.calls(claim)) == 1


async def test_calls_above_the_limit_of_concurrent_ones_wait_for_their_turn(
    tmp_path: Path,
) -> None:
    limits = GatewayLimits(concurrent_calls_per_attempt=2, queued_calls_per_attempt=3)
    with ModelServer() as engine:
        async with open_rig(tmp_path, limits=limits) as rig:
            await rig.register(engine.url)
            claim, other = await rig.claim(), await rig.claim()
            engine.block()
            six = [asyncio.create_task(post(f"{rig.url}/v1", claim.key)) for _ in range(6)]
            done, five = await asyncio.wait(six, return_when=asyncio.FIRST_COMPLETED)
            [(status, told)] = [one.result() for one in done]  # 2 under way, 3 in the queue
            assert (status, told["error"]["code"]) == (429, "concurrency_limit")
            assert "LIGHTNINGRL_GATEWAY_QUEUED_CALLS_PER_ATTEMPT" in told["error"]["message"]
            await engine.arrived(2)
            theirs = asyncio.create_task(post(f"{rig.url}/v1", other.key))
            await engine.arrived(3)  # another attempt's call waits for nobody
            assert engine.calls == 3
            engine.unblock()
            assert [status for status, _ in await asyncio.gather(*five, theirs)] == [200] * 6
            assert (await post(f"{rig.url}/v1", claim.key))[0] == 200
            assert len(await rig.calls(claim)) == 6
            async with aiohttp.ClientSession() as session:
                answer = await session.get(f"{rig.url}/metrics")
                [line] = [
                    one
                    for one in (await answer.text()).splitlines()
                    if one.startswith("lightningrl_gateway_queued_seconds_total")
                ]
            assert float(line.split()[-1]) > 0


async def test_a_call_whose_client_hangs_up_in_the_queue_leaves_it(tmp_path: Path) -> None:
    limits = GatewayLimits(concurrent_calls_per_attempt=1, queued_calls_per_attempt=1)
    with ModelServer() as engine:
        async with open_rig(tmp_path, limits=limits) as rig:
            await rig.register(engine.url)
            claim = await rig.claim()
            engine.block()
            first = asyncio.create_task(post(f"{rig.url}/v1", claim.key))
            await engine.arrived(1)
            two = [asyncio.create_task(post(f"{rig.url}/v1", claim.key)) for _ in range(2)]
            done, [queued] = await asyncio.wait(two, return_when=asyncio.FIRST_COMPLETED)
            assert [one.result()[0] for one in done] == [429]
            queued.cancel()
            while not await rig.calls(claim):
                pass
            engine.unblock()
            assert (await first)[0] == 200
            gone, done = await rig.calls(claim)
            assert engine.calls == 1
    assert (gone.status.value, gone.http_status) == ("cancelled", 499)
    assert done.status.value == "delivered"


async def test_an_attempt_that_is_not_known_to_the_store_is_refused(rig: GatewayRig) -> None:
    key = sign_attempt_key(
        await rig.store.secret(), AttemptId("a-gone"), SystemClock().now() + timedelta(hours=1)
    )
    assert (await refused(f"{rig.url}/v1", key))[:2] == (404, "attempt_not_found")
