"""A fork is answered from its parent's record up to a step, and samples from there on. The agents are the real SDKs."""

import asyncio
import json
import os
import shutil
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import openai
import pytest

from lightningrl.capture.context import RolloutContext, in_rollout
from lightningrl.capture.replaying import replaying
from lightningrl.capture.sink import BufferSink
from lightningrl.experience.transition import assemble
from lightningrl.schema import (
    AttemptId,
    AttemptState,
    CallEvent,
    Cause,
    Claim,
    Failure,
    FailureKind,
    Fork,
    OnDivergence,
    ReplayOf,
    StepId,
)
from lightningrl_testkit.gateway import GatewayRig, open_rig
from lightningrl_testkit.model_server import Answer, ModelServer, ToolCall

STEPS = 10
TOOL: dict[str, Any] = {
    "name": "look",
    "description": "Look.",
    "parameters": {"type": "object", "properties": {"key": {"type": "string"}}},
}
Tool = Callable[[str], str]
Agent = Callable[[GatewayRig, Claim, Tool], Awaitable[str]]


def look(key: str) -> str:
    return f"value of {key}"


def script(request: dict[str, Any]) -> Answer:
    """Nine tool calls, then an answer."""
    turn = sum(message["role"] == "assistant" for message in request["messages"])
    if turn == STEPS - 1:
        return Answer("done")
    return Answer(tool_calls=(ToolCall(f"look-{turn}", "look", f'{{"key": "{turn}"}}'),))


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[GatewayRig]:
    async with open_rig(tmp_path) as rig:
        yield rig


@pytest.fixture
def engine() -> Iterator[ModelServer]:
    with ModelServer(script) as engine:
        yield engine


# -- agents of ten steps ----------------------------------------------------------------------------


def _openai(rig: GatewayRig, claim: Claim) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=rig.attempt_url(claim), api_key=claim.key, max_retries=0)


def chat(stream: bool) -> Agent:
    async def act(rig: GatewayRig, claim: Claim, tool: Tool) -> str:
        messages: list[Any] = [{"role": "user", "content": "Look around."}]
        tools: Any = [{"type": "function", "function": TOOL}]
        async with _openai(rig, claim) as client:
            while True:
                if stream:
                    asked: Any = {"model": "m", "messages": messages, "tools": tools}
                    async with client.chat.completions.stream(**asked) as events:
                        whole = await events.get_final_completion()
                else:
                    whole = await client.chat.completions.create(
                        model="m", messages=messages, tools=tools
                    )
                said: Any = whole.choices[0].message
                messages.append(
                    said.model_dump(exclude_none=True, include={"role", "content", "tool_calls"})
                )
                if not said.tool_calls:
                    return said.content or ""
                for call in said.tool_calls:
                    key = json.loads(call.function.arguments)["key"]
                    messages.append({"role": "tool", "tool_call_id": call.id, "content": tool(key)})

    return act


async def responses(rig: GatewayRig, claim: Claim, tool: Tool) -> str:
    """Says by id what came before, as the real service keeps it."""
    given: Any = "Look around."
    before: Any = openai.omit
    tools: Any = [{"type": "function", **TOOL, "strict": False}]
    async with _openai(rig, claim) as client:
        while True:
            answer: Any = await client.responses.create(
                model="m",
                input=given,
                tools=tools,
                previous_response_id=before,
            )
            before = answer.id
            given = [
                {
                    "type": "function_call_output",
                    "call_id": one.call_id,
                    "output": tool(json.loads(one.arguments)["key"]),
                }
                for one in answer.output
                if one.type == "function_call"
            ]
            if not given:
                return answer.output_text


async def messages_api(rig: GatewayRig, claim: Claim, tool: Tool) -> str:
    """Streams Anthropic's messages."""
    import anthropic

    url = rig.attempt_url(claim).removesuffix("/v1")
    said: list[Any] = [{"role": "user", "content": "Look around."}]
    tools: Any = [{"name": "look", "input_schema": TOOL["parameters"]}]
    async with anthropic.AsyncAnthropic(base_url=url, api_key=claim.key, max_retries=0) as client:
        while True:
            async with client.messages.stream(
                model="m", max_tokens=500, messages=said, tools=tools
            ) as stream:
                answer: Any = await stream.get_final_message()
            asked = [one for one in answer.content if one.type == "tool_use"]
            if not asked:
                return "".join(one.text for one in answer.content if one.type == "text")
            said.append(
                {
                    "role": "assistant",
                    "content": [
                        one.model_dump(include={"type", "id", "name", "input"}) for one in asked
                    ],
                }
            )
            results = [
                {"type": "tool_result", "tool_use_id": one.id, "content": tool(one.input["key"])}
                for one in asked
            ]
            said.append({"role": "user", "content": results})


NODE = """
import readline from "node:readline";
const {OPENAI_BASE_URL, OPENAI_API_KEY, TOOL} = process.env;
const answers = readline.createInterface({input: process.stdin})[Symbol.asyncIterator]();
const messages = [{role: "user", content: "Look around."}];
const tools = [{type: "function", function: JSON.parse(TOOL)}];
for (;;) {
  const answer = await fetch(`${OPENAI_BASE_URL}/chat/completions`, {
    method: "POST",
    headers: {authorization: `Bearer ${OPENAI_API_KEY}`, "content-type": "application/json"},
    body: JSON.stringify({model: "m", messages, tools}),
  });
  if (!answer.ok) throw new Error(await answer.text());
  const said = (await answer.json()).choices[0].message;
  messages.push(said);
  if (!said.tool_calls?.length) {
    console.log(JSON.stringify({done: said.content}));
    process.exit(0);
  }
  for (const call of said.tool_calls) {
    console.log(call.function.arguments);
    messages.push({role: "tool", tool_call_id: call.id, content: (await answers.next()).value});
  }
}
"""


async def node(rig: GatewayRig, claim: Claim, tool: Tool) -> str:
    """A program of another language, which has a command's environment and nothing of ours; its tool is asked by pipes."""
    program = await asyncio.create_subprocess_exec(
        *("node", "--input-type=module", "-e", NODE),
        env={
            "PATH": os.environ["PATH"],
            "OPENAI_BASE_URL": rig.attempt_url(claim),
            "OPENAI_API_KEY": claim.key,
            "TOOL": json.dumps(TOOL),
        },
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert program.stdin is not None
    assert program.stdout is not None
    try:
        while line := await program.stdout.readline():
            asked = json.loads(line)
            if "done" in asked:
                return asked["done"]
            program.stdin.write(tool(asked["key"]).encode() + b"\n")
        raise AssertionError("the program broke off")
    finally:
        if program.returncode is None:
            program.kill()
        await program.wait()


AGENTS = {
    "node": node,
    "chat": chat(stream=False),
    "chat, streaming": chat(stream=True),
    "responses": responses,
    "messages, streaming": messages_api,
}
EVERY_AGENT = [
    pytest.param(
        agent,
        id=name,
        marks=[pytest.mark.skipif(shutil.which("node") is None, reason="there is no Node here")]
        if agent is node
        else [],
    )
    for name, agent in AGENTS.items()
]


async def parent_of(rig: GatewayRig, engine: ModelServer, agent: Agent) -> list[CallEvent]:
    await rig.register(engine.url)
    claim = await rig.claim()
    assert await agent(rig, claim, look) == "done"
    calls = await rig.calls(claim)
    assert len(calls) == STEPS
    return calls


def fork_at(calls: list[CallEvent], index: int, **changed: Any) -> Fork:
    return Fork(calls[0].attempt_id, calls[index].step_id, **changed)


# -- what is answered -------------------------------------------------------------------------------


@pytest.mark.parametrize("agent", EVERY_AGENT)
@pytest.mark.parametrize("steps", [(0, 6), pytest.param(range(STEPS), marks=pytest.mark.long)])
async def test_forks_replay_the_trunk_and_sample_what_follows(
    rig: GatewayRig, engine: ModelServer, agent: Agent, steps: Sequence[int]
) -> None:
    parent = await parent_of(rig, engine, agent)
    before = engine.calls
    claims = [await rig.claim(fork=fork_at(parent, index)) for index in steps]
    said = await asyncio.gather(*(agent(rig, claim, look) for claim in claims))
    assert said == ["done"] * len(steps)
    assert engine.calls - before == sum(STEPS - index for index in steps)
    for index, claim in zip(steps, claims, strict=True):
        calls = await rig.calls(claim)
        origins = [ReplayOf(one.attempt_id, one.id) for one in parent[:index]]
        assert [call.replay_of for call in calls] == [*origins, *[None] * (STEPS - index)]
        for call, one in zip(calls, parent, strict=True):
            assert (call.attempt_id, call.prompt_ids) == (claim.attempt.id, one.prompt_ids)
            assert call.choices[0].message == one.choices[0].message
            assert call.choices[0].token_ids == one.choices[0].token_ids
            assert call.choices[0].logprobs == one.choices[0].logprobs


async def test_a_replayed_call_of_another_rollout_is_trained_there_alone(
    rig: GatewayRig, engine: ModelServer
) -> None:
    agent = chat(stream=False)
    parent = await parent_of(rig, engine, agent)
    rollout, _ = await rig.store.attempt(parent[0].attempt_id)
    claim = await rig.claim(fork=fork_at(parent, 2))
    await agent(rig, claim, look)
    [events] = await rig.store.events([claim.attempt.id])
    reasons = [one.untrainable for one in assemble(claim.rollout, claim.attempt, events)]
    assert reasons == [f"replayed: trained in {rollout.id}"] * 2 + [None] * (STEPS - 2)
    # A fork of the fork names where it was sampled, not where it was replayed.
    again = await rig.claim(fork=fork_at(await rig.calls(claim), 3))
    await agent(rig, again, look)
    calls = await rig.calls(again)
    assert calls[0].replay_of == ReplayOf(parent[0].attempt_id, parent[0].id)
    assert calls[2].replay_of is not None
    assert calls[2].replay_of.attempt == claim.attempt.id
    assert calls[0].choices[0].untrainable == f"replayed: trained in {rollout.id}"


@pytest.mark.long
async def test_64_forks_at_once_are_filed_right(rig: GatewayRig, engine: ModelServer) -> None:
    agent = chat(stream=True)
    parent = await parent_of(rig, engine, agent)
    claims = [await rig.claim(fork=fork_at(parent, index % STEPS)) for index in range(64)]
    await asyncio.gather(*(agent(rig, claim, look) for claim in claims))
    for index, claim in enumerate(claims):
        calls = await rig.calls(claim)
        assert [call.replay_of is not None for call in calls].count(True) == index % STEPS
        assert [call.prompt_ids for call in calls] == [call.prompt_ids for call in parent]


async def test_what_a_person_says_takes_the_place_of_an_answer(
    rig: GatewayRig, engine: ModelServer
) -> None:
    parent = await parent_of(rig, engine, chat(stream=False))
    claim = await rig.claim(fork=fork_at(parent, 3, say={"content": "I give up"}))
    before = engine.calls
    assert await chat(stream=False)(rig, claim, look) == "I give up"
    assert engine.calls == before
    assert len(await rig.calls(claim)) == 4


async def test_a_restarted_gateway_goes_on_where_it_was(
    tmp_path: Path, engine: ModelServer
) -> None:
    agent = chat(stream=False)
    async with open_rig(tmp_path) as rig:
        parent = await parent_of(rig, engine, agent)
        claim = await rig.claim(fork=Fork(parent[0].attempt_id))
        async with _openai(rig, claim) as client:
            first: Any = json.loads(parent[0].request)
            await client.chat.completions.create(**first)
    async with open_rig(tmp_path) as rig:
        async with _openai(rig, claim) as client:
            with pytest.raises(openai.BadRequestError, match="was recorded with 3"):
                await client.chat.completions.create(**first)
        calls = await rig.calls(claim)
        assert [call.replay_of is not None for call in calls] == [True, False]


# -- attempts of one rollout ------------------------------------------------------------------------


async def next_attempt(rig: GatewayRig, claim: Claim) -> Claim:
    """The attempt after one that infrastructure failed."""
    failure = Failure(FailureKind.INFRASTRUCTURE, "the machine is gone")
    await rig.store.finish(claim.attempt.id, AttemptState.FAILED, failure=failure)
    [again] = await rig.store.claim("rig", lease_seconds=600)
    assert again.rollout.id == claim.rollout.id
    return again


async def is_done(rig: GatewayRig, claim: Claim) -> bool:
    """What `lightningrl.replaying()` says in an attempt."""
    context = RolloutContext(
        claim.rollout.id, claim.attempt.id, rig.url, claim.key, BufferSink(), replays=True
    )
    with in_rollout(context):
        return await asyncio.to_thread(replaying)


class Killed(Exception):
    """The agent's process is gone."""


def killed_at(count: int) -> Tool:
    """The tool in whose call number `count` the agent is killed."""
    looked: list[str] = []

    def tool(key: str) -> str:
        looked.append(key)
        if len(looked) == count:
            raise Killed
        return look(key)

    return tool


@pytest.mark.parametrize("agent", EVERY_AGENT)
async def test_an_attempt_that_was_killed_is_tried_again_with_its_answers(
    rig: GatewayRig, engine: ModelServer, agent: Agent
) -> None:
    await rig.register(engine.url)
    claim = await rig.claim(replay_staleness=0)
    with pytest.raises(Killed):
        await agent(rig, claim, killed_at(STEPS - 1))
    first = await rig.calls(claim)
    assert len(first) == STEPS - 1
    before = engine.calls
    again = await next_attempt(rig, claim)
    assert await agent(rig, again, look) == "done"
    assert engine.calls == before + 1
    calls = await rig.calls(again)
    assert [one.replay_of for one in calls] == [
        *(ReplayOf(one.attempt_id, one.id) for one in first),
        None,
    ]
    [events] = await rig.store.events([again.attempt.id])
    transitions = assemble(again.rollout, again.attempt, events)
    assert [one.untrainable for one in transitions] == [None] * STEPS, "its copies are its own"
    assert [one.logprob_bytes for one in transitions[:-1]] == [
        one.choices[0].logprobs for one in first
    ]


async def test_of_40_calls_one_is_sampled_anew_after_a_kill_at_39(
    rig: GatewayRig, engine: ModelServer
) -> None:
    engine.script = lambda request: (
        script({"messages": []}) if len(request["messages"]) < 2 * 40 - 1 else Answer("done")
    )
    agent = chat(stream=False)
    await rig.register(engine.url)
    claim = await rig.claim(replay_staleness=0)
    with pytest.raises(Killed):
        await agent(rig, claim, killed_at(39))
    assert engine.calls == 39
    again = await next_attempt(rig, claim)
    assert await agent(rig, again, look) == "done"
    assert engine.calls == 40


async def test_the_second_failure_at_the_same_call_samples_it_anew(
    rig: GatewayRig, engine: ModelServer
) -> None:
    agent = chat(stream=False)
    await rig.register(engine.url)
    claim = await rig.claim(replay_staleness=0)
    sampled: list[int] = []
    for _ in range(4):
        before = engine.calls
        with pytest.raises(Killed):
            await agent(rig, claim, killed_at(3))
        sampled.append(engine.calls - before)
        claim = await next_attempt(rig, claim)
    assert sampled == [3, 0, 1, 0]


async def test_a_retry_knows_what_its_tools_did_but_for_what_the_last_answer_asked_for(
    rig: GatewayRig, engine: ModelServer
) -> None:
    agent = chat(stream=False)
    await rig.register(engine.url)
    claim = await rig.claim(replay_staleness=0)
    assert not await is_done(rig, claim)
    with pytest.raises(Killed):
        await agent(rig, claim, killed_at(3))
    again = await next_attempt(rig, claim)
    asked = [json.loads(one.request) for one in await rig.calls(claim)]
    done = [await is_done(rig, again)]
    async with _openai(rig, again) as client:
        for one in asked:
            await client.chat.completions.create(**one)
            done.append(await is_done(rig, again))
    assert done == [False, True, True, False]


@pytest.mark.parametrize("staleness", [0, 1])
async def test_what_is_too_old_to_be_trained_is_sampled_anew(
    rig: GatewayRig, engine: ModelServer, staleness: int
) -> None:
    agent = chat(stream=False)
    await rig.register(engine.url)
    claim = await rig.claim(replay_staleness=staleness)
    with pytest.raises(Killed):
        await agent(rig, claim, killed_at(3))
    await rig.register(engine.url, version=1)
    before = engine.calls
    again = await next_attempt(rig, claim)
    assert await agent(rig, again, look) == "done"
    assert engine.calls - before == STEPS - 3 * staleness
    versions = [one.version_start for one in await rig.calls(again)]
    assert versions == [0] * 3 * staleness + [1] * (STEPS - 3 * staleness)


async def test_a_fork_that_broke_goes_on_where_it_was(rig: GatewayRig, engine: ModelServer) -> None:
    agent = chat(stream=False)
    parent = await parent_of(rig, engine, agent)
    claim = await rig.claim(fork=fork_at(parent, 3), replay_staleness=0)
    with pytest.raises(Killed):
        await agent(rig, claim, killed_at(5))
    again = await next_attempt(rig, claim)
    before = engine.calls
    assert await agent(rig, again, look) == "done"
    assert engine.calls == before + STEPS - 5
    [events] = await rig.store.events([again.attempt.id])
    transitions = assemble(again.rollout, again.attempt, events)
    assert [one.untrainable is None for one in transitions] == [False] * 3 + [True] * 7


async def test_an_agent_whose_tools_say_the_time_is_sampled_anew_from_there(
    rig: GatewayRig, engine: ModelServer
) -> None:
    agent = chat(stream=False)
    await rig.register(engine.url)
    claim = await rig.claim(replay_staleness=0)
    times = iter(range(100))

    def tool(key: str) -> str:
        at = next(times)
        if at == 3:
            raise Killed
        return f"{key} at 09:{at:02}"

    with pytest.raises(Killed):
        await agent(rig, claim, tool)
    again = await next_attempt(rig, claim)
    assert await agent(rig, again, tool) == "done"
    calls = await rig.calls(again)
    assert [one.replay_of is not None for one in calls] == [True] + [False] * (STEPS - 1)
    assert [one.diverged.cause for one in calls if one.diverged is not None] == [Cause.TIME]


# -- divergence -------------------------------------------------------------------------------------


@pytest.mark.parametrize("on_divergence", OnDivergence)
async def test_a_tool_with_a_clock_diverges_by_name(
    rig: GatewayRig, engine: ModelServer, on_divergence: OnDivergence
) -> None:
    agent = chat(stream=False)
    await rig.register(engine.url)
    claim = await rig.claim()
    await agent(rig, claim, lambda key: f"{key} at 09:1{key}")
    parent = await rig.calls(claim)
    claim = await rig.claim(fork=fork_at(parent, 5, on_divergence=on_divergence))
    before = engine.calls
    if on_divergence is OnDivergence.FAIL:
        with pytest.raises(openai.BadRequestError) as refused:
            await agent(rig, claim, lambda key: f"{key} at 10:4{key}")
        assert refused.value.code == "fork_diverged"
        assert engine.calls == before
        async with _openai(rig, claim) as client:  # the agent goes on all the same
            with pytest.raises(openai.BadRequestError):
                await client.chat.completions.create(**json.loads(parent[1].request))
    else:
        assert await agent(rig, claim, lambda key: f"{key} at 10:4{key}") == "done"
        assert engine.calls == before + STEPS - 1
    calls = await rig.calls(claim)
    assert [call.replay_of is not None for call in calls[:2]] == [True, False]
    diverged = calls[1].diverged
    assert diverged is not None
    assert (diverged.cause, diverged.tool) == (Cause.TIME, "look")
    assert diverged.nearest == parent[1].id
    told = "line 1 of message 3 (tool), the output of tool 'look', differs: '09:10' became '10:40'"
    assert diverged.difference == told
    if on_divergence is OnDivergence.FAIL:
        assert told in (calls[1].error or "")
    else:
        assert [call.diverged for call in calls[2:]] == [None] * (STEPS - 2), "the rest follows"


async def test_log_probs_as_texts_are_in_no_record(rig: GatewayRig, engine: ModelServer) -> None:
    await rig.register(engine.url)
    asked: Any = {"model": "m", "messages": [{"role": "user", "content": "Hi"}], "logprobs": True}
    claim = await rig.claim()
    async with _openai(rig, claim) as client:
        await client.chat.completions.create(**asked)
    fork = await rig.claim(fork=Fork(claim.attempt.id))
    async with _openai(rig, fork) as client:
        with pytest.raises(openai.BadRequestError, match="log-probs"):
            await client.chat.completions.create(**asked)


@pytest.mark.parametrize("is_step", [True, False])
async def test_a_fork_without_a_parent_is_refused(
    rig: GatewayRig, engine: ModelServer, is_step: bool
) -> None:
    parent = await parent_of(rig, engine, chat(stream=False))
    fork = Fork(parent[0].attempt_id, StepId("gone")) if is_step else Fork(AttemptId("gone"))
    claim = await rig.claim(fork=fork)
    with pytest.raises(openai.NotFoundError, match="which the store does not have"):
        await chat(stream=False)(rig, claim, look)
