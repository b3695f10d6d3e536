"""Rollouts that the user's own code drives, against a real server in another process."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
import pytest
from msgspec.structs import replace

import lightningrl
from lightningrl.capture.client import uninstall_client_patch
from lightningrl.capture.context import current
from lightningrl.errors import ConfigError
from lightningrl.gateway import GatewayClient
from lightningrl.recorder import process
from lightningrl.schema import (
    Attempt,
    AttemptState,
    CallEvent,
    Endpoint,
    LiveTerms,
    Mode,
    Policy,
    RewardsFrom,
    Rollout,
    RolloutState,
    Sampling,
)
from lightningrl.store import RolloutQuery, Store, open_store
from lightningrl_testkit.model_server import ModelServer

pytestmark = pytest.mark.usefixtures("forked")

SERVER = """
import sys
from lightningrl.server import serve
serve(sys.argv[1], ready=lambda url: print(url, flush=True))
"""


@dataclass
class Site:
    """A server with a policy of the run `live`."""

    url: str
    store: Store

    async def rollouts(self) -> list[tuple[Rollout, Attempt, int]]:
        """Rollouts, oldest first, each with its last attempt and that one's number of calls."""
        found: list[tuple[Rollout, Attempt, int]] = []
        for rollout in await self.store.rollouts(RolloutQuery(run="live")):
            *_, attempt = await self.store.attempts([rollout.id])
            [events] = await self.store.events([attempt.id])
            calls = sum(isinstance(one, CallEvent) for one in events)
            found.append((rollout, attempt, calls))
        return found


@pytest.fixture
async def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Site]:
    monkeypatch.setattr(process, "_called", False)
    monkeypatch.setattr(process, "_recorder", None)
    command = [sys.executable, "-c", SERVER, str(tmp_path / "store.db")]
    with (
        ModelServer() as model,
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server,  # noqa: ASYNC220 - a fixture
    ):
        assert server.stdout is not None
        url = server.stdout.readline().strip()
        monkeypatch.setenv("LIGHTNINGRL_SERVER", url)
        store = open_store(url)
        async with GatewayClient(url) as control:
            await control.register(
                Policy(name="policy", run="live", version=0, endpoints=(Endpoint(model.url),))
            )
        yield Site(url, store)
        await store.close()
        process._sender(url, None).close()
        server.terminate()
    uninstall_client_patch()


def ask(text: str) -> str | None:
    with openai.OpenAI(base_url="http://127.0.0.1:9/v1", api_key="none") as client:
        reply = client.chat.completions.create(
            model="policy", messages=[{"role": "user", "content": text}]
        )
    return reply.choices[0].message.content


async def test_a_block_is_a_rollout(site: Site) -> None:
    def block() -> None:
        with lightningrl.rollout({"question": "x"}) as rollout:
            assert current() is not None
            rollout.output = ask("hello")
            lightningrl.final_reward(0.5)
        assert current() is None

    await asyncio.to_thread(block)
    [(rollout, attempt, calls)] = await site.rollouts()
    assert (rollout.spec.mode, rollout.spec.task) == (Mode.LIVE, {"question": "x"})
    assert (rollout.state, rollout.reward) == (RolloutState.SUCCEEDED, 0.5)
    assert (attempt.output, calls) == ("hello", 1)


async def test_a_runner_of_the_same_run_is_not_handed_a_live_rollout(site: Site) -> None:
    waiting = asyncio.create_task(site.store.claim("runner", run="live", wait_seconds=60.0))
    while not await site.store.workers():  # until it has looked once
        continue
    async with lightningrl.rollout({"question": "x"}):
        assert await site.store.claim("another runner") == []
    waiting.cancel()
    [(rollout, attempt, _)] = await site.rollouts()
    assert (rollout.state, rollout.attempts) == (RolloutState.SUCCEEDED, 1)
    assert attempt.worker not in ("runner", "another runner")


async def test_the_run_says_how_its_live_rollouts_are_sampled_and_what_they_await(
    site: Site,
) -> None:
    [policy] = await site.store.policies("live")
    sampling = Sampling(temperature=0.7, max_tokens=16)
    terms = LiveTerms(sampling, RewardsFrom.EMITTED, await_rewards=("user",), await_seconds=60.0)
    await site.store.put_policy(replace(policy, live=terms))
    async with lightningrl.rollout({}) as one:
        await asyncio.to_thread(ask, "hello")
        lightningrl.final_reward(1.0)
    [(rollout, attempt, _)] = await site.rollouts()
    assert not rollout.complete
    assert (rollout.spec.await_rewards, rollout.spec.await_seconds) == (("user",), 60.0)
    assert rollout.spec.rewards is RewardsFrom.EMITTED
    [call] = await site.store.calls(attempt.id)
    assert call.sampling == sampling
    # Feedback goes where the rollout went, by whatever process, and completes it.
    lightningrl.feedback(one.id, -1.0, name="user")
    lightningrl.feedback(one.id, 0.25)
    assert process._sender(site.url, None).flush(60.0)
    [(rollout, _, _)] = await site.rollouts()
    assert (rollout.complete, rollout.reward) == (True, 0.25)


async def test_a_decorated_coroutine_is_a_rollout_for_each_call(site: Site) -> None:
    @lightningrl.rollout
    async def agent(task: dict[str, Any]) -> float:
        assert await asyncio.to_thread(ask, task["text"]) == task["text"]
        return task["reward"]

    tasks = [{"text": f"text-{index}", "reward": float(index)} for index in range(4)]
    assert await asyncio.gather(*map(agent, tasks)) == [0.0, 1.0, 2.0, 3.0]
    found = await site.rollouts()
    assert all(one.reward == one.spec.task["reward"] and calls == 1 for one, _, calls in found)
    assert len(found) == 4


async def test_threads_of_decorated_functions_never_mix(site: Site) -> None:
    @lightningrl.rollout(timeout_seconds=60)
    def agent(text: str, *, shout: bool) -> str | None:
        return ask(text.upper() if shout else text)

    def run_all() -> list[str | None]:
        with ThreadPoolExecutor(4) as pool:
            return list(pool.map(lambda index: agent(f"t{index}", shout=True), range(4)))

    assert await asyncio.to_thread(run_all) == ["T0", "T1", "T2", "T3"]
    for rollout, attempt, calls in await site.rollouts():
        [text] = rollout.spec.task["args"]
        assert rollout.spec.task["kwargs"] == {"shout": True}
        assert (attempt.output, calls, rollout.reward) == (text.upper(), 1, None)


async def test_an_exception_is_recorded_and_passes_on(site: Site) -> None:
    with pytest.raises(ValueError, match="the user's"):
        async with lightningrl.rollout():
            raise ValueError("the user's")
    [(rollout, attempt, _)] = await site.rollouts()
    assert rollout.state is RolloutState.FAILED
    assert attempt.failure is not None
    assert "the user's" in attempt.failure.message


async def test_two_rewards_fail_the_rollout_and_not_the_users_code(site: Site) -> None:
    @lightningrl.rollout
    async def agent(_: dict[str, Any]) -> float:
        lightningrl.final_reward(1.0)
        return 0.25

    assert await agent({}) == 0.25
    [(_, attempt, _)] = await site.rollouts()
    assert attempt.state is AttemptState.FAILED


async def test_without_a_server_or_a_policy_the_error_says_what_to_do(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match="run 'other' has no policy"):
        async with lightningrl.rollout(run="other"):
            pass
    monkeypatch.delenv("LIGHTNINGRL_SERVER")
    with pytest.raises(ConfigError, match="set LIGHTNINGRL_SERVER"), lightningrl.rollout():
        pass
