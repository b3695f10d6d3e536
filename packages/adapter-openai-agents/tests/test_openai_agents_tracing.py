"""The user's own tracing stays theirs, and the form of capture that patches nothing."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread
from typing import Any

import agents
import pytest
from agents import Agent, RunConfig, Runner, function_tool
from agents.tracing.processors import BackendSpanExporter
from openai import AsyncOpenAI, AuthenticationError

from lightningrl.capture.adapter import Adapter
from lightningrl.capture.adapters import adapted_modules
from lightningrl.capture.client import uninstall_client_patch
from lightningrl.errors import AgentError
from lightningrl.runner.process import keep_traces_home
from lightningrl.schema import StepKind
from lightningrl_openai_agents import CaptureProcessor, CaptureProvider, OpenAIAgentsAdapter
from lightningrl_testkit.lab import MODEL, CaptureLab, Recorded, lookup

pytestmark = pytest.mark.usefixtures("forked")

PROMPT = "use a"
AGENT = Agent(name="worker", model=MODEL, tools=[function_tool(lookup)])
OUTER = Agent(name="outer", model=MODEL, tools=[AGENT.as_tool("ask", "Asks.")])
FIRST = Agent(name="first", model=MODEL, handoffs=[Agent(name="second", model=MODEL)])


class Watcher(agents.TracingProcessor):
    """A user's processor."""

    def __init__(self) -> None:
        self.spans: list[str] = []

    def on_trace_start(self, trace: Any) -> None: ...
    def on_trace_end(self, trace: Any) -> None: ...
    def on_span_start(self, span: Any) -> None: ...
    def on_span_end(self, span: Any) -> None:
        self.spans.append(span.span_data.type)

    def shutdown(self) -> None: ...
    def force_flush(self) -> None: ...


@pytest.fixture
def watcher() -> Iterator[Watcher]:
    watcher = Watcher()
    agents.set_trace_processors([watcher])
    yield watcher
    agents.set_trace_processors([])


# -- what the user has configured ------------------------------------------------------------------


async def test_tracing_off_or_without_data_hides_nothing_from_us(lab: CaptureLab) -> None:
    traced = await lab.record(lambda: Runner.run(AGENT, PROMPT))
    for config in (
        RunConfig(tracing_disabled=True),
        RunConfig(trace_include_sensitive_data=False),
    ):
        async with lab.attempt() as context:
            await Runner.run(AGENT, PROMPT, run_config=config)
        found = await lab.recorded(context)
        assert found.shape() == traced.shape()
        [tool] = found.of(StepKind.TOOL)
        assert (tool.inputs, found.ends[tool.step_id].output) == ({"key": "a"}, "value of a")


async def test_tracing_off_keeps_the_errors_of_steps(lab: CaptureLab) -> None:
    async with lab.attempt() as context:
        await Runner.run(AGENT, "use missing", run_config=RunConfig(tracing_disabled=True))
    found = await lab.recorded(context)
    [tool] = found.of(StepKind.TOOL)
    assert found.ends[tool.step_id].error == "KeyError: 'there is no such key'"


async def test_the_users_processors_see_what_they_saw(
    lab: CaptureLab, watcher: Watcher, adapter: Adapter
) -> None:
    async with AsyncOpenAI() as client:
        config = RunConfig(
            model_provider=agents.OpenAIProvider(openai_client=client, use_responses=False)
        )
        await lab.record(lambda: Runner.run(AGENT, PROMPT, run_config=config))
        captured = list(watcher.spans)
        watcher.spans.clear()
        adapter.uninstall()
        await lab.record(lambda: Runner.run(AGENT, PROMPT, run_config=config))
    assert captured == watcher.spans != []


class Vendor:
    """A server that takes traces."""

    def __init__(self) -> None:
        self.keys: list[str | None] = []
        """Of the requests that came, with what they identified themselves."""
        keys = self.keys

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["content-length"]))
                keys.append(self.headers["authorization"])
                self.send_response(200)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *args: Any) -> None: ...

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"


@pytest.fixture
def vendor() -> Iterator[Vendor]:
    vendor = Vendor()
    serving = Thread(target=vendor.server.serve_forever)
    serving.start()
    yield vendor
    vendor.server.shutdown()
    serving.join()
    vendor.server.server_close()


def export(exporter: BackendSpanExporter, key: str | None = None) -> None:
    """Export one trace, as the SDK's background thread would."""
    with agents.trace("workflow", tracing={"api_key": key} if key else None) as trace:
        pass
    exporter.export([trace])
    exporter.close()


def test_a_runners_placeholder_sends_no_traces(
    adapter: Adapter, vendor: Vendor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "lightningrl-placeholder")
    export(BackendSpanExporter(endpoint=vendor.url))
    assert vendor.keys == []
    adapter.uninstall()
    export(BackendSpanExporter(endpoint=vendor.url))
    assert vendor.keys == ["Bearer lightningrl-placeholder"]


def test_traces_with_a_key_of_the_users_own_are_sent(
    adapter: Adapter, vendor: Vendor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "lightningrl-placeholder")
    export(BackendSpanExporter("exporters", endpoint=vendor.url))
    export(BackendSpanExporter(endpoint=vendor.url), "traces")
    assert vendor.keys == ["Bearer exporters", "Bearer traces"]


WITHOUT_ADAPTER = """
import sys
from lightningrl.runner.process import keep_traces_home, prepare_environment
prepare_environment("http://127.0.0.1:9")
if sys.argv[1] == "kept home":
    keep_traces_home([])
import agents
from agents.tracing.processors import BackendSpanExporter, BatchTraceProcessor
agents.set_trace_processors([BatchTraceProcessor(BackendSpanExporter(endpoint=sys.argv[2]))])
with agents.trace("workflow"):
    with agents.function_span("tool"):
        pass
agents.flush_traces()
"""


@pytest.mark.parametrize(
    ("runner", "users", "sent"),
    [
        ("does nothing", None, ["Bearer lightningrl-placeholder"]),
        ("kept home", None, []),
        ("kept home", "false", ["Bearer lightningrl-placeholder"]),
    ],
)
def test_without_the_adapter_a_runner_switches_tracing_off_unless_the_user_has_set_it(
    vendor: Vendor, runner: str, users: str | None, sent: list[str]
) -> None:
    variable = "OPENAI_AGENTS_DISABLE_TRACING"
    environment = {name: value for name, value in os.environ.items() if name != variable}
    if users is not None:
        environment[variable] = users
    command = [sys.executable, "-c", WITHOUT_ADAPTER, runner, vendor.url]
    subprocess.run(command, env=environment, check=True, timeout=60)
    assert vendor.keys == sent


def test_with_the_adapter_a_runner_leaves_the_variable_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("OPENAI_AGENTS_DISABLE_TRACING", raising=False)
    keep_traces_home(adapted_modules())
    assert "OPENAI_AGENTS_DISABLE_TRACING" not in os.environ


# -- without patching ------------------------------------------------------------------------------


async def test_a_processor_captures_what_is_traced_and_patches_nothing(
    lab: CaptureLab, adapter: Adapter
) -> None:
    adapter.uninstall()
    agents.add_trace_processor(CaptureProcessor())
    try:
        async with AsyncOpenAI() as client:
            config = RunConfig(
                model_provider=agents.OpenAIProvider(openai_client=client, use_responses=False)
            )
            nested = await lab.record(lambda: Runner.run(OUTER, "use use a", run_config=config))
            handed = await lab.record(lambda: Runner.run(FIRST, "use it", run_config=config))
    finally:
        agents.set_trace_processors([])
    for found in (nested, handed):
        assert found.joined == {one.step_id for one in found.of(StepKind.LLM)}
        assert {one.step_id for one in found.starts} == set(found.ends)
    assert [one.agent for one in nested.calls] == ["outer", "worker", "worker", "outer"]
    tools = {one.name: nested.ends[one.step_id].output for one in nested.of(StepKind.TOOL)}
    assert tools == {"ask": "done: use a", "lookup": "value of a"}
    assert [one.agent for one in handed.calls] == ["first", "second"]
    assert [handed.ends[one.step_id].output for one in handed.of(StepKind.HANDOFF)] == ["second"]


@pytest.mark.parametrize("responses", [False, True], ids=["chat", "responses"])
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
async def test_a_provider_captures_with_nothing_patched_at_all(
    lab: CaptureLab, adapter: Adapter, stream: bool, responses: bool
) -> None:
    adapter.uninstall()
    uninstall_client_patch()
    agents.add_trace_processor(CaptureProcessor())

    async def run(number: int) -> Recorded:
        async with AsyncOpenAI(base_url=f"{lab.rig.url}/v1", api_key="none") as client:
            inner = agents.OpenAIProvider(openai_client=client, use_responses=responses)
            config = RunConfig(model_provider=CaptureProvider(inner))
            prompt = f"use use key-{number}"
            async with lab.attempt() as context:
                if stream:
                    result = Runner.run_streamed(OUTER, prompt, run_config=config)
                    async for _ in result.stream_events():
                        pass
                else:
                    await Runner.run(OUTER, prompt, run_config=config)
        return await lab.recorded(context)

    try:
        all_found = await asyncio.gather(*(run(number) for number in range(8)))
    finally:
        agents.set_trace_processors([])
    for number, found in enumerate(all_found):
        assert found.whole
        assert [one.agent for one in found.calls] == ["outer", "worker", "worker", "outer"]
        assert all(f"key-{number}" in one.request.decode() for one in found.calls)


async def test_a_provider_needs_no_tracing_and_adds_nothing_outside(
    lab: CaptureLab, adapter: Adapter
) -> None:
    adapter.uninstall()
    uninstall_client_patch()
    async with AsyncOpenAI(base_url=f"{lab.rig.url}/v1", api_key="none") as client:
        inner = agents.OpenAIProvider(openai_client=client, use_responses=False)
        config = RunConfig(model_provider=CaptureProvider(inner), tracing_disabled=True)
        async with lab.attempt() as context:
            await Runner.run(AGENT, PROMPT, run_config=config)
        found = await lab.recorded(context)
        assert found.joined == {one.step_id for one in found.of(StepKind.LLM)}
        assert len(found.calls) == 2
        with pytest.raises(AuthenticationError):
            await Runner.run(AGENT, PROMPT, run_config=config)


async def test_a_provider_beside_the_adapter_records_once(lab: CaptureLab) -> None:
    async with AsyncOpenAI() as client:
        inner = agents.OpenAIProvider(openai_client=client, use_responses=False)
        plain = RunConfig(model_provider=inner)
        wrapped = RunConfig(model_provider=CaptureProvider(inner))
        once = await lab.record(lambda: Runner.run(OUTER, "use use a", run_config=plain))
        both = await lab.record(lambda: Runner.run(OUTER, "use use a", run_config=wrapped))
    assert both.whole
    assert both.shape() == once.shape()


async def test_with_both_forms_nothing_is_recorded_twice(lab: CaptureLab) -> None:
    once = await lab.record(lambda: Runner.run(OUTER, "use use a"))
    agents.add_trace_processor(CaptureProcessor())
    try:
        both = await lab.record(lambda: Runner.run(OUTER, "use use a"))
    finally:
        agents.set_trace_processors([])
    assert both.shape() == once.shape()


# -- running agents --------------------------------------------------------------------------------


async def test_an_agent_object_is_run_and_shared(lab: CaptureLab) -> None:
    call = OpenAIAgentsAdapter().wrap(AGENT, fresh=False)
    assert call is not None
    async with lab.attempt():
        assert await call("hello") == "done: hello"
        assert await call([{"role": "user", "content": "hello"}]) == "done: hello"
        with pytest.raises(AgentError, match="name an `input:` function"):
            await call({"question": "x"})
    assert OpenAIAgentsAdapter().wrap("something else", fresh=False) is None
