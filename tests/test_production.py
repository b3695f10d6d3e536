"""Real agents in production: recorded without a gateway, by every adapter, into a file or a server."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import agents
import pytest
from agent_framework import Agent as FrameworkAgent
from agent_framework import FunctionTool as FrameworkTool
from agent_framework.openai import OpenAIChatCompletionClient as FrameworkClient
from agents import Agent, OpenAIProvider, RunConfig, Runner, function_tool
from autogen_agentchat.agents import AssistantAgent
from langchain.agents import create_agent
from langchain_core.tools import StructuredTool
from langchain_openai import ChatOpenAI
from openai import AsyncOpenAI, DefaultAsyncHttpxClient, DefaultHttpxClient

import lightningrl
from lightningrl.conversation.recorded import whole_requests
from lightningrl.schema import Mode, StepKind
from lightningrl.store import open_store
from lightningrl.traces import AttemptRecord
from lightningrl_testkit.autogen_client import autogen_client
from lightningrl_testkit.lab import MODEL, lookup, script
from lightningrl_testkit.model_server import Answer, ModelServer, ToolCall
from lightningrl_testkit.production import begin, live_records, read, unrecorded, written_bytes
from lightningrl_testkit.runner_process import captured

pytestmark = pytest.mark.usefixtures("forked")

SECRET = "4111-1111-1111-1111"


@pytest.fixture
def vendor(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModelServer]:
    """A vendor's model, and a process in production."""
    agents.set_trace_processors([])  # the SDK's exporter would leave this machine
    # Captured, as in a process that also has rollouts through a gateway.
    with captured(), unrecorded(monkeypatch), ModelServer(script) as model:
        monkeypatch.setenv("OPENAI_BASE_URL", model.url)
        monkeypatch.setenv("OPENAI_API_KEY", "of the vendor")
        yield model


async def langchain(prompt: str, *, stream: bool) -> None:
    with DefaultHttpxClient() as http:
        async with DefaultAsyncHttpxClient() as http_async:
            model = ChatOpenAI(model=MODEL, http_client=http, http_async_client=http_async)
            tool = StructuredTool.from_function(coroutine=lookup, name="lookup")
            agent = create_agent(model, [tool], name="worker")
            if not stream:
                await agent.ainvoke({"messages": prompt})
                return
            async for _ in agent.astream({"messages": prompt}, stream_mode="messages"):
                pass


async def openai_agents(prompt: str, *, stream: bool) -> None:
    agent = Agent(name="worker", model=MODEL, tools=[function_tool(lookup)])
    async with AsyncOpenAI() as client:
        config = RunConfig(model_provider=OpenAIProvider(openai_client=client, use_responses=False))
        if not stream:
            await Runner.run(agent, prompt, run_config=config)
            return
        async for _ in Runner.run_streamed(agent, prompt, run_config=config).stream_events():
            pass


async def autogen(prompt: str, *, stream: bool) -> None:
    async with autogen_client() as client:
        agent = AssistantAgent(
            "worker",
            model_client=client,
            tools=[lookup],
            model_client_stream=stream,
            reflect_on_tool_use=True,
        )
        await agent.run(task=prompt)


async def agent_framework(prompt: str, *, stream: bool) -> None:
    async with AsyncOpenAI() as client:
        tool = FrameworkTool(name="lookup", description="Look up.", func=lookup)
        agent = FrameworkAgent(
            FrameworkClient(model=MODEL, async_client=client), name="worker", tools=[tool]
        )
        if not stream:
            await agent.run(prompt)
            return
        async for _ in agent.run(prompt, stream=True):
            pass


async def no_framework(prompt: str, *, stream: bool) -> None:
    async with AsyncOpenAI() as client:
        answer: Any = await client.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": prompt}], stream=stream
        )
        if stream:
            async for _ in answer:
                pass


FRAMEWORKS = pytest.mark.parametrize(
    "work", [langchain, openai_agents, autogen, agent_framework], ids=lambda work: work.__name__
)


def check(record: AttemptRecord, key: str) -> None:
    """Two calls of "worker" with a tool call between, all of this rollout, whole again."""
    asked = [one for one in record.transitions if one.kind is StepKind.LLM]
    tools = [one for one in record.transitions if one.kind is StepKind.TOOL]
    assert [one.agent for one in asked] == ["worker", "worker"]
    assert [(one.name, one.inputs, one.error) for one in tools] == [("lookup", {"key": key}, None)]
    assert not any(one.interrupted or one.error for one in record.transitions)
    # Only what the first request lacks is kept of the second.
    first, second = (one.inputs for one in asked)
    assert second["continues"] == asked[0].step_id
    assert second["kept"] == len(first["messages"])
    whole = whole_requests({one.step_id: one.inputs for one in asked})
    messages = whole[asked[1].step_id]["messages"]
    assert messages[: len(first["messages"])] == first["messages"]
    assert f"use {key}" in str(first["messages"])
    assert f"value of {key}" in str(messages[len(first["messages"]) :])
    assert "lookup" in str(first["tools"])
    assert key in str(asked[0].output)
    assert f"done: use {key}" in str(asked[1].output)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@FRAMEWORKS
async def test_8_rollouts_at_once_are_recorded_with_what_was_asked_and_answered(
    work: Any, stream: bool, vendor: ModelServer, tmp_path: Path
) -> None:
    path = tmp_path / "traffic.db"
    recorder = begin(path)

    async def one(number: int) -> None:
        async with lightningrl.rollout({"number": number}):
            await work(f"use key-{number}", stream=stream)

    await asyncio.gather(*(one(number) for number in range(8)))
    assert recorder.flush(60.0)
    records = await read(path)
    assert len(records) == 8
    for record in records:
        assert record.rollout.spec.mode is Mode.LIVE
        check(record, f"key-{record.rollout.spec.task['number']}")
    assert recorder.counts.dropped == {}
    # What left for the vendor is what the agent sent, and nothing of ours.
    assert len(vendor.arrivals) == 16
    for arrival in vendor.arrivals:
        assert arrival.headers["authorization"] == "Bearer of the vendor"
        assert not any("lightningrl" in name for name in arrival.headers)


@FRAMEWORKS
async def test_outside_the_sample_nothing_is_recorded_and_the_agent_works(
    work: Any, vendor: ModelServer, tmp_path: Path
) -> None:
    recorder = begin(tmp_path / "traffic.db", sampling_rate=0.0)
    async with lightningrl.rollout():
        await work("use a", stream=False)
    assert recorder.flush()
    assert len(vendor.arrivals) == 2
    assert not (tmp_path / "traffic.db").exists()
    assert recorder.counts.sampled_out == 1


@FRAMEWORKS
async def test_a_secret_that_the_agent_handled_is_nowhere_in_the_file(
    work: Any, vendor: ModelServer, tmp_path: Path
) -> None:
    path = tmp_path / "traffic.db"
    hide = lightningrl.redact_texts(lambda text: text.replace(SECRET, "***"))
    recorder = begin(path, redact=hide)
    async with lightningrl.rollout({"card": SECRET}) as one:
        await work(f"use {SECRET}", stream=False)
        one.output = f"looked up {SECRET}"
    assert recorder.flush(60.0)
    assert SECRET in str([one.body for one in vendor.arrivals])
    [record] = await read(path)
    check(record, "***")
    assert SECRET.encode() not in written_bytes(path)


@FRAMEWORKS
async def test_a_hook_that_fails_keeps_the_secret_out_and_the_agent_going(
    work: Any, vendor: ModelServer, tmp_path: Path
) -> None:
    path = tmp_path / "traffic.db"

    def redact(record: Any) -> Any:
        if SECRET in str(record):
            raise ValueError(SECRET)
        return record

    recorder = begin(path, redact=redact)
    for key in (SECRET, "harmless"):
        async with lightningrl.rollout():
            await work(f"use {key}", stream=False)
    assert recorder.flush(60.0)
    assert len(vendor.arrivals) == 4
    assert recorder.counts.dropped == {"redaction": 1}
    [record] = await read(path)
    check(record, "harmless")
    assert SECRET.encode() not in written_bytes(path)


SERVER = """
import sys
from lightningrl.keys import AccessKeys
from lightningrl.server import serve
keys = AccessKeys(("admin",), ("runner",))
serve(sys.argv[1], keys=keys, ready=lambda url: print(url, flush=True))
"""


@FRAMEWORKS
async def test_a_server_takes_what_a_process_with_a_runners_key_recorded(
    work: Any, vendor: ModelServer, tmp_path: Path
) -> None:
    command = [sys.executable, "-c", SERVER, str(tmp_path / "store.db")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:  # noqa: ASYNC220 - before the test's work
        assert server.stdout is not None
        url = server.stdout.readline().strip()
        recorder = begin(url, key="runner")

        async def one(number: int) -> str:
            async with lightningrl.rollout({"number": number}) as rollout:
                await work(f"use key-{number}", stream=True)
            return rollout.id

        ids = await asyncio.gather(*(one(number) for number in range(8)))
        for rollout_id in ids:
            lightningrl.feedback(rollout_id, 1.0)
        lightningrl.feedback(ids[0], -1.0)
        assert recorder.flush(60.0)
        store = open_store(url, key="admin")
        records = await live_records(store)
        await store.close()
        server.terminate()
    assert sorted(one.rollout.id for one in records) == sorted(ids)
    for record in records:
        check(record, f"key-{record.rollout.spec.task['number']}")
        assert record.rollout.reward == (-1.0 if record.rollout.id == ids[0] else 1.0)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
async def test_frameworks_and_a_plain_client_in_one_rollout_record_each_call_once(
    stream: bool, vendor: ModelServer, tmp_path: Path
) -> None:
    recorder = begin(tmp_path / "traffic.db")
    async with lightningrl.rollout():
        for work in (langchain, openai_agents, autogen, agent_framework, no_framework):
            await work("use a", stream=stream)
    assert recorder.flush(60.0)
    [record] = await read(tmp_path / "traffic.db")
    asked = [one for one in record.transitions if one.kind is StepKind.LLM]
    assert len(asked) == len(vendor.arrivals) == 9
    assert [one.agent for one in asked] == ["worker"] * 8 + [None]
    assert not any(one.interrupted or one.error for one in record.transitions)


PLAIN = """
import lightningrl
recorder = lightningrl.record("traffic.db")
with lightningrl.rollout({"question": "Hi"}) as one:
    from openai import OpenAI
    answer = OpenAI().chat.completions.create(
        model="gpt-4o-mini", messages=[{"role": "user", "content": "Hi"}]
    )
    one.output = answer.choices[0].message.content
assert recorder.flush(60.0)
"""


async def test_a_client_that_is_imported_later_is_recorded_too(
    vendor: ModelServer, tmp_path: Path
) -> None:
    done = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-c", PLAIN], cwd=tmp_path, check=False
    )
    assert done.returncode == 0
    [record] = await read(tmp_path / "traffic.db")
    [step] = record.transitions
    assert (step.name, step.inputs["messages"]) == (
        *("gpt-4o-mini", [{"role": "user", "content": "Hi"}]),
    )
    assert step.output["content"] == record.attempt.output == "done: Hi"


PAGE = Path(__file__).resolve().parent.parent / "docs" / "how-to" / "record-in-production.md"
PROGRAM = re.compile(r"^<!-- file: service.py -->\n```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
COMMANDS = re.compile(r"^lightningrl (.*)$", re.MULTILINE)


def serve_card(request: dict[str, Any]) -> Answer:
    """Looks the order of the card up, then says what it found."""
    *_, last = request["messages"]
    if last["role"] == "tool":
        return Answer(f"Found {last['content']}.")
    return Answer(tool_calls=(ToolCall("call-1", "find_order", f'{{"card": "{SECRET}"}}'),))


def test_the_pages_program_and_commands_do_what_the_page_says(tmp_path: Path) -> None:
    text = PAGE.read_text(encoding="utf-8")
    [program] = PROGRAM.findall(text)
    # The SDK speaks Responses unless told, which the scripted vendor doesn't.
    start = "import agents; agents.set_default_openai_api('chat_completions')\n"
    (tmp_path / "service.py").write_text(start + program, encoding="utf-8")

    def run(*command: str) -> str:
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    with ModelServer(serve_card) as model:
        environment = {
            **{name: value for name, value in os.environ.items() if "LIGHTNINGRL" not in name},
            "OPENAI_BASE_URL": model.url,
            "OPENAI_API_KEY": "of the vendor",
            "OPENAI_AGENTS_DISABLE_TRACING": "1",
            "LIGHTNINGRL_RECORD": "traffic.db",
        }
        assert run(sys.executable, "service.py") == f"Found order 17, paid with {SECRET}.\n"
    shown, exported = (
        run(sys.executable, "-m", "lightningrl.cli", *shlex.split(one))
        for one in COMMANDS.findall(text)
    )
    assert "find_order" in shown or "1 rollout" in shown
    assert exported == "exported 1 task to tasks.jsonl\n"
    [line] = [json.loads(one) for one in (tmp_path / "tasks.jsonl").read_text().splitlines()]
    assert line["question"] == "Where is the order of card [card]?"
    [rollout] = line["rollouts"]
    assert (rollout["reward"], rollout["output"]) == (1.0, "Found order 17, paid with [card].")
    first, second = rollout["calls"]
    assert first["request"]["messages"] == [
        {"role": "user", "content": "Where is the order of card [card]?"}
    ]
    assert [one.get("role", one.get("type")) for one in second["request"]["messages"]] == [
        *("user", "function_call", "function_call_output"),
    ]
    assert "Found order 17" in str(second["response"])
    assert SECRET.encode() not in written_bytes(tmp_path / "traffic.db")
