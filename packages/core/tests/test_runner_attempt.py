"""One attempt: every way in which an agent can be given, and every way in which it can end."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import socket
import struct
import sys
import threading
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import openai
import pytest

import lightningrl
from lightningrl.capture.client import install_client_patch, uninstall_client_patch
from lightningrl.errors import ConfigError
from lightningrl.runner.attempt import AttemptRunner
from lightningrl.runner.flush import EventFlusher
from lightningrl.runner.outcome import AttemptTrace
from lightningrl.runner.resolve import ResolvedAgent, agent_call, awaitable
from lightningrl.runner.swallowed import heard
from lightningrl.schema import (
    Attempt,
    AttemptState,
    Claim,
    Event,
    FailureKind,
    Fork,
    LogEvent,
    LogTopic,
    RewardEvent,
    RewardsFrom,
    RolloutState,
    StepEndEvent,
)
from lightningrl.store.base import RolloutQuery
from lightningrl_testkit.gateway import RUN, GatewayRig, open_rig
from lightningrl_testkit.model_server import ModelServer
from lightningrl_testkit.records import group


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[GatewayRig]:
    install_client_patch()
    with ModelServer() as model:
        async with open_rig(tmp_path) as rig:
            await rig.register(model.url, name="policy")
            yield rig
    uninstall_client_patch()


async def ask(_: Any = None) -> str | None:
    async with openai.AsyncOpenAI(base_url="http://127.0.0.1:9/v1", api_key="none") as client:
        reply = await client.chat.completions.create(
            model="policy", messages=[{"role": "user", "content": "hello"}]
        )
    return reply.choices[0].message.content


def ask_sync() -> str | None:
    with openai.OpenAI(base_url="http://127.0.0.1:9/v1", api_key="none") as client:
        reply = client.chat.completions.create(
            model="policy", messages=[{"role": "user", "content": "hello"}]
        )
    return reply.choices[0].message.content


def make_runner(
    rig: GatewayRig,
    agent: Any = None,
    *,
    reward: Callable[..., Any] | None = None,
    make_input: Callable[..., Any] | None = None,
    command: tuple[str, ...] | None = None,
) -> AttemptRunner:
    resolved = ResolvedAgent(
        call=None if agent is None else agent_call(agent, (), what="agent"),
        command=command,
        make_input=make_input and awaitable(make_input, "input"),
        score=reward and awaitable(heard(reward), "reward"),
    )
    return AttemptRunner(
        store=rig.store,
        agent=resolved,
        flusher=EventFlusher(rig.store),
        server_url=rig.url,
        aliases=frozenset({"policy"}),
        folder=Path.cwd(),
    )


async def attempt_of(
    rig: GatewayRig, agent: Any = None, *, of: Claim | None = None, **options: Any
) -> tuple[Attempt, list[Event]]:
    claim = of or await rig.claim()
    await make_runner(rig, agent, **options).run(claim)
    _, attempt = await rig.store.attempt(claim.attempt.id)
    [events] = await rig.store.events([claim.attempt.id])
    return attempt, events


def rewards(events: list[Event]) -> list[tuple[float, str | None, str]]:
    found = [one for one in events if isinstance(one, RewardEvent)]
    return [(one.value, one.step_id, one.source) for one in found]


# -- agents ----------------------------------------------------------------------------------------


async def an_async_agent(_: Any) -> float:
    await ask()
    return 0.5


def a_sync_agent(_: Any) -> float:
    ask_sync()
    return 0.5


class AnObject:
    async def run(self, task: Any) -> float:
        return await an_async_agent(task)


class ASyncObject:
    def run(self, *, task: Any) -> float:
        return a_sync_agent(task)


class ACallable:
    async def __call__(self, task: Any) -> float:
        return await an_async_agent(task)


async def an_async_factory() -> AnObject:
    return AnObject()


@pytest.mark.parametrize(
    "agent",
    [
        an_async_agent,
        a_sync_agent,
        AnObject(),
        ASyncObject(),
        ACallable(),
        AnObject,
        an_async_factory,
        lambda: a_sync_agent,
    ],
)
async def test_any_form_of_agent_is_run_and_rewarded(rig: GatewayRig, agent: Any) -> None:
    attempt, events = await attempt_of(rig, agent)
    assert attempt.failure is None
    assert (attempt.state, attempt.output) == (AttemptState.SUCCEEDED, 0.5)
    assert rewards(events) == [(0.5, None, "agent")]


def test_what_cannot_be_run_is_a_config_error_that_says_what_can() -> None:
    with pytest.raises(ConfigError, match=r"'m:x' is a builtins.int.*object with run\(task=...\)"):
        agent_call(3, (), what="m:x")


async def test_the_input_function_makes_the_agents_input(rig: GatewayRig) -> None:
    async def agent(given: str) -> float:
        await ask()
        return float(len(given))

    attempt, _ = await attempt_of(rig, agent, make_input=lambda task: f"task {task}")
    assert attempt.output == 7.0  # "task {}"


# -- rewards ---------------------------------------------------------------------------------------


async def test_the_recipes_function_scores_the_output_outside_the_rollout(rig: GatewayRig) -> None:
    seen: list[Any] = []

    async def agent(_: Any) -> str | None:
        with lightningrl.step("tool", "search", inputs=1) as search:
            search.output = 2
        return await ask()

    def score(task: Any, output: Any, trace: AttemptTrace) -> float:
        lightningrl.final_reward(9.0)  # does nothing here
        seen.append((task, output, [(one.name, one.output) for one in trace.tool_calls]))
        return 1.0

    attempt, events = await attempt_of(rig, agent, reward=score)
    assert seen == [({}, "hello", [("search", 2)])]
    assert attempt.output == "hello"
    assert rewards(events) == [(1.0, None, "recipe")]


async def test_a_reward_with_steps_rewards_them(rig: GatewayRig) -> None:
    async def agent(_: Any) -> lightningrl.Reward:
        await ask()
        return lightningrl.Reward(1.0, steps={"s-1": 0.25})

    _, events = await attempt_of(rig, agent)
    assert rewards(events) == [(0.25, "s-1", "agent"), (1.0, None, "agent")]


async def test_an_emitted_final_reward_needs_no_other(rig: GatewayRig) -> None:
    async def agent(_: Any) -> str | None:
        lightningrl.final_reward(0.75)
        return await ask()

    attempt, events = await attempt_of(rig, agent)
    assert (attempt.state, attempt.output) == (AttemptState.SUCCEEDED, "hello")
    assert rewards(events) == [(0.75, None, "agent")]


def _caught(value: float) -> Callable[..., float]:
    def score(*_: Any) -> float:
        try:
            raise ValueError("signal only works in main thread")
        except ValueError:
            return value

    return score


async def test_a_zero_that_stands_for_a_caught_error_is_noted(rig: GatewayRig) -> None:
    _, events = await attempt_of(rig, ask, reward=_caught(0.0))
    (note,) = [one for one in events if isinstance(one, LogEvent)]
    assert note.topic is LogTopic.REWARD_ERROR
    assert "ValueError: signal only works in main thread, in line " in note.message
    _, events = await attempt_of(rig, ask, reward=_caught(0.5))
    assert not any(isinstance(one, LogEvent) for one in events)


# -- failures --------------------------------------------------------------------------------------


async def no_reward(_: Any) -> None:
    await ask()


async def not_a_number(_: Any) -> float:
    await ask()
    return float("nan")


async def two_rewards(_: Any) -> float:
    await ask()
    lightningrl.final_reward(1.0)
    return 1.0


async def no_call(_: Any) -> float:
    return 1.0


async def raises(_: Any) -> float:
    with lightningrl.step("tool", "search"):
        raise ValueError("the user's own")


async def raises_no_unicode(_: Any) -> float:
    raise ValueError("half \ud83d")


async def names_no_unicode(_: Any) -> float:
    await ask()
    lightningrl.reward(1.0, step="s", name="\ud83d")
    return 1.0


async def exits(_: Any) -> float:
    sys.exit(3)


async def cancels_itself(_: Any) -> float:
    raise asyncio.CancelledError


def stops_iterating(_: Any) -> float:
    return next(iter(()))


@pytest.mark.parametrize(
    ("agent", "kind", "text"),
    [
        (no_reward, FailureKind.NO_REWARD, "has no reward"),
        (not_a_number, FailureKind.AGENT, "the final reward is nan"),
        (two_rewards, FailureKind.AGENT, "has 2 final rewards"),
        (no_call, FailureKind.AGENT, "the agent made no model call"),
        (raises, FailureKind.AGENT, "ValueError: the user's own"),
        (raises_no_unicode, FailureKind.AGENT, "ValueError: half \\ud83d"),
        (names_no_unicode, FailureKind.AGENT, "(RewardEvent) of attempt"),
        (exits, FailureKind.AGENT, "SystemExit: 3"),
        (cancels_itself, FailureKind.AGENT, "CancelledError"),
        (stops_iterating, FailureKind.AGENT, "StopIteration"),
    ],
)
async def test_every_failure_is_data_with_its_name(
    rig: GatewayRig, agent: Any, kind: FailureKind, text: str
) -> None:
    attempt, events = await attempt_of(rig, agent)
    assert attempt.state is AttemptState.FAILED
    assert attempt.failure is not None
    assert attempt.failure.kind is kind
    assert text in attempt.failure.message
    assert "runner/attempt.py" not in attempt.failure.message
    if agent is raises:
        assert [one.error for one in events if isinstance(one, StepEndEvent)] == [
            "ValueError: the user's own"
        ]


async def test_a_fork_that_asks_for_something_else_has_diverged_whatever_its_agent_catches(
    rig: GatewayRig,
) -> None:
    async def asks(words: str) -> float:
        messages: Any = [{"role": "user", "content": words}]
        async with openai.AsyncOpenAI(base_url="http://127.0.0.1:9/v1", api_key="none") as client:
            with contextlib.suppress(openai.BadRequestError):
                await client.chat.completions.create(model="policy", messages=messages)
        return 0.5

    parent, _ = await attempt_of(rig, lambda _: asks("at 10:02"))
    for words, kind in (("at 10:02", None), ("at 17:45", FailureKind.DIVERGED)):
        claim = await rig.claim(fork=Fork(parent.id))
        attempt, _ = await attempt_of(rig, lambda _, words=words: asks(words), of=claim)
        assert (attempt.failure and attempt.failure.kind) == kind
    assert attempt.failure is not None
    assert "'10:02' became '17:45'" in attempt.failure.message


async def test_a_failing_gateway_is_infrastructure(rig: GatewayRig) -> None:
    async def agent(_: Any) -> float:
        try:
            await ask()
        except openai.APIError as error:
            raise RuntimeError("my framework wraps errors") from error
        return 1.0

    claim = await rig.claim()
    runner = make_runner(rig, agent)
    # Nobody listens on this port, so the connection is refused.
    gone = AttemptRunner(
        store=runner.store,
        agent=runner.agent,
        flusher=runner.flusher,
        server_url="http://127.0.0.1:9",
        aliases=runner.aliases,
        folder=runner.folder,
    )
    await gone.run(claim)
    _, attempt = await rig.store.attempt(claim.attempt.id)
    assert attempt.failure is not None
    assert attempt.failure.kind is FailureKind.INFRASTRUCTURE


async def test_an_output_without_a_json_form_is_shown_and_said(rig: GatewayRig) -> None:
    async def agent(_: Any) -> object:
        await ask()
        lightningrl.final_reward(1.0)
        return threading.current_thread

    attempt, events = await attempt_of(rig, agent)
    assert attempt.output.startswith("<function current_thread")
    logs = [one.message for one in events if isinstance(one, LogEvent)]
    assert "the output has no JSON form, its repr is stored: function" in logs


async def test_an_attempt_that_ended_elsewhere_is_left_alone(rig: GatewayRig) -> None:
    claim: Claim = await rig.claim()

    async def agent(_: Any) -> float:
        await ask()
        await rig.store.cancel([claim.rollout.id])
        return 1.0

    await make_runner(rig, agent).run(claim)
    rollout, attempt = await rig.store.attempt(claim.attempt.id)
    assert rollout.state is RolloutState.CANCELLED
    assert (attempt.state, attempt.output) == (AttemptState.FAILED, None)


# -- commands --------------------------------------------------------------------------------------


PROGRAM = """
import json, os, sys, urllib.request
task = json.load(open(os.environ["LIGHTNINGRL_TASK_FILE"]))
assert os.environ["LIGHTNINGRL_ATTEMPT_URL"] == os.environ["OPENAI_BASE_URL"]
assert os.environ["ANTHROPIC_BASE_URL"] + "/v1" == os.environ["OPENAI_BASE_URL"]
assert os.environ["ANTHROPIC_API_KEY"] == os.environ["OPENAI_API_KEY"]
assert "LIGHTNINGRL_KEY" not in os.environ
body = {"model": "policy", "messages": [{"role": "user", "content": "hello"}]}
request = urllib.request.Request(
    os.environ["OPENAI_BASE_URL"] + "/chat/completions",
    json.dumps(body).encode(),
    {
        "content-type": "application/json",
        "authorization": "Bearer " + os.environ["OPENAI_API_KEY"],
    },
)
reply = json.load(urllib.request.urlopen(request))
answer = reply["choices"][0]["message"]["content"]
open(os.environ["LIGHTNINGRL_OUTPUT_FILE"], "w").write(RESULT)
"""


def program(output: str) -> tuple[str, ...]:
    return (sys.executable, "-c", PROGRAM.replace("RESULT", output))


async def test_a_command_gets_its_task_and_returns_json(rig: GatewayRig) -> None:
    attempt, events = await attempt_of(rig, command=program("json.dumps(len(answer))"))
    assert attempt.failure is None
    assert attempt.output == 5  # "hello"
    assert rewards(events) == [(5.0, None, "agent")]


async def test_a_command_sends_no_traces_with_the_attempts_key(
    rig: GatewayRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """OpenAI's Agents SDK would, to OpenAI; whoever wants it says so."""
    result = "os.environ['OPENAI_AGENTS_DISABLE_TRACING']"
    attempt, _ = await attempt_of(rig, command=program(result), reward=lambda *_: 1.0)
    assert attempt.output is True
    monkeypatch.setenv("OPENAI_AGENTS_DISABLE_TRACING", "0")
    attempt, _ = await attempt_of(rig, command=program(result), reward=lambda *_: 1.0)
    assert attempt.output == 0


async def test_a_commands_text_is_scored_by_the_recipe(rig: GatewayRig) -> None:
    def score(_task: Any, output: Any, trace: AttemptTrace) -> float:
        return float(output == "hello" and len(trace.events) == 1)  # the one call

    _, events = await attempt_of(rig, command=program("answer"), reward=score)
    assert rewards(events) == [(1.0, None, "recipe")]


async def test_a_command_that_fails_shows_what_it_wrote_last(rig: GatewayRig) -> None:
    command = (sys.executable, "-c", "import sys; print('so sorry', file=sys.stderr); sys.exit(7)")
    attempt, _ = await attempt_of(rig, command=command)
    assert attempt.failure is not None
    assert attempt.failure.kind is FailureKind.AGENT
    assert "ended with status 7; it wrote last:\nso sorry" in attempt.failure.message


async def resets(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Break a connection that was made, once something was asked: Node's `fetch` may miss one that breaks before."""
    await reader.read(1)
    linger = struct.pack("ii", 1, 0)
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    writer.transport.abort()


FETCH = (
    "await fetch(process.env.OPENAI_BASE_URL + '/chat/completions', {method: 'POST', body: '{}'})"
)


@pytest.mark.parametrize(
    "command",
    [
        (sys.executable, "-c", PROGRAM.replace("RESULT", "''")),
        pytest.param(
            ("node", "--input-type=module", "-e", FETCH),
            marks=pytest.mark.skipif(shutil.which("node") is None, reason="there is no Node here"),
        ),
    ],
    ids=["python", "node"],
)
async def test_a_command_whose_connection_to_the_gateway_breaks_is_not_to_blame(
    rig: GatewayRig, command: tuple[str, ...]
) -> None:
    claim = await rig.claim()
    runner = make_runner(rig, command=command)
    async with await asyncio.start_server(resets, "127.0.0.1", 0) as broken:
        host, port = broken.sockets[0].getsockname()
        await replace(runner, server_url=f"http://{host}:{port}").run(claim)
    _, attempt = await rig.store.attempt(claim.attempt.id)
    assert attempt.failure is not None
    assert attempt.failure.kind is FailureKind.INFRASTRUCTURE, attempt.failure.message


async def test_a_command_that_does_not_exist_is_named(rig: GatewayRig) -> None:
    attempt, _ = await attempt_of(rig, command=("./no-such-program",))
    assert attempt.failure is not None
    assert "'./no-such-program' can't be started" in attempt.failure.message


async def test_a_command_posts_its_reward_where_the_rollout_says_so(rig: GatewayRig) -> None:
    claim = await rig.claim(rewards=RewardsFrom.EMITTED)
    rewarding = """
url = os.environ["LIGHTNINGRL_ATTEMPT_URL"] + "/rewards"
headers = {"authorization": "Bearer " + os.environ["OPENAI_API_KEY"]}
urllib.request.urlopen(urllib.request.Request(url, b'{"value": 0.75}', headers))
"""
    command = (sys.executable, "-c", PROGRAM.replace("RESULT", "'done'") + rewarding)
    attempt, events = await attempt_of(rig, of=claim, command=command)
    assert (attempt.failure, attempt.output) == (None, "done")
    assert rewards(events) == [(0.75, None, "agent")]


async def test_an_agent_whose_final_reward_is_awaited_needs_none(rig: GatewayRig) -> None:
    await rig.store.enqueue(group(run=RUN, await_rewards=("final",)))
    (claim,) = await rig.store.claim("rig")

    async def agent(_: Any) -> str | None:
        return await ask()

    attempt, events = await attempt_of(rig, agent, of=claim)
    assert (attempt.state, rewards(events)) == (AttemptState.SUCCEEDED, [])
    (found,) = await rig.store.rollouts(RolloutQuery(ids=(claim.rollout.id,)))
    assert not found.complete


async def test_agents_and_commands_get_the_resources_of_their_rollout(rig: GatewayRig) -> None:
    await rig.store.put_resource(RUN, "prompt", {"system": "Be brief."})

    async def agent(_: Any) -> lightningrl.Reward:
        await ask()
        return lightningrl.Reward(len(lightningrl.resource("prompt")["system"]))

    await rig.store.enqueue(group(2, run=RUN, resources={"prompt": 1}))
    in_python, in_command = await rig.store.claim("rig", limit=2)
    _, events = await attempt_of(rig, agent, of=in_python)
    assert rewards(events) == [(9.0, None, "agent")]  # "Be brief."
    result = 'json.dumps(json.load(open(os.environ["LIGHTNINGRL_RESOURCES_FILE"])))'
    attempt, _ = await attempt_of(
        rig, of=in_command, command=program(result), reward=lambda *_: 1.0
    )
    assert attempt.output == {"prompt": {"system": "Be brief."}}
