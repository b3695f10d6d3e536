"""The user's own OpenTelemetry sees the same spans, in the same tree, with our adapters as without."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import pytest
from agent_framework import Agent, FunctionTool
from agent_framework.observability import OBSERVABILITY_SETTINGS
from agent_framework.openai import OpenAIChatCompletionClient
from autogen_agentchat.agents import AssistantAgent
from autogen_agentchat.teams import RoundRobinGroupChat
from openai import AsyncOpenAI
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from lightningrl_agent_framework import AgentFrameworkAdapter
from lightningrl_autogen import AutoGenAdapter
from lightningrl_testkit.autogen_client import autogen_client
from lightningrl_testkit.lab import LOOKUP_DESCRIPTION, MODEL, CaptureLab, lookup, open_lab
from lightningrl_testkit.runner_process import captured, tell_address

ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
"""AutoGen names its spans after a team's id."""


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemorySpanExporter]:
    """What the user's exporter gets."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", provider)
    monkeypatch.setattr(OBSERVABILITY_SETTINGS, "_enable_instrumentation", True)
    yield exporter
    provider.shutdown()


@pytest.fixture
async def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[CaptureLab]:
    async with open_lab(tmp_path) as lab:
        tell_address(monkeypatch, lab.rig.url)
        yield lab


def tree(exporter: InMemorySpanExporter) -> list[tuple[str, str | None]]:
    """Name of each span of a framework, and of the span around it, in order of their end."""
    finished = exporter.get_finished_spans()
    exporter.clear()
    names = {
        one.context.span_id: ID.sub("ID", one.name) for one in finished if one.context is not None
    }
    return [
        (ID.sub("ID", one.name), None if one.parent is None else names.get(one.parent.span_id))
        for one in finished
    ]


async def agent_framework() -> None:
    async with AsyncOpenAI(max_retries=0) as client:
        tool = FunctionTool(name="lookup", description=LOOKUP_DESCRIPTION, func=lookup)
        agent = Agent(
            OpenAIChatCompletionClient(model=MODEL, async_client=client),
            name="worker",
            tools=[tool],
        )
        await agent.run("use a")
        async for _ in agent.run("use a", stream=True):
            pass


async def autogen() -> None:
    async with autogen_client() as client:
        worker = AssistantAgent("worker", client, tools=[lookup], reflect_on_tool_use=True)
        await RoundRobinGroupChat([worker], max_turns=1).run(task="use a")
        async for _ in worker.run_stream(task="use a"):
            pass


@pytest.mark.parametrize(
    ("adapter", "work"),
    [(AgentFrameworkAdapter, agent_framework), (AutoGenAdapter, autogen)],
    ids=["agent-framework", "autogen"],
)
async def test_the_users_spans_are_what_they_were(
    adapter: type[AgentFrameworkAdapter | AutoGenAdapter],
    work: Callable[[], Awaitable[None]],
    lab: CaptureLab,
    spans: InMemorySpanExporter,
) -> None:
    with captured():
        await lab.record(work)
    without_us = tree(spans)
    with captured(adapter()):
        found = await lab.record(work)
    assert tree(spans) == without_us
    assert len(without_us) >= 6
    assert len(found.calls) >= 3
    assert found.whole
