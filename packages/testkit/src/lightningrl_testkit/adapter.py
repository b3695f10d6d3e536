"""What every adapter must do: `AdapterContract`, inherited by each adapter's own tests.

Invariant: the claims are checked on what is in the store after real agents made real calls through a
real gateway, never on the adapter's insides. Only the model behind it all is scripted.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

import lightningrl
from lightningrl.capture.adapter import Adapter
from lightningrl.capture.client import install_client_patch, uninstall_client_patch
from lightningrl.capture.context import RolloutContext, in_rollout
from lightningrl.capture.sink import BufferSink, Sink
from lightningrl.schema import (
    CallEvent,
    CallStatus,
    Event,
    LogEvent,
    RewardEvent,
    StepEndEvent,
    StepKind,
    StepStartEvent,
)
from lightningrl_testkit.gateway import GatewayRig, open_rig
from lightningrl_testkit.model_server import Answer, ModelServer, Script, ToolCall

MODEL = "policy"
"""The model name that the subclass's agents call."""

LOOKUP_DESCRIPTION = "Look up the value of a key."


async def lookup(key: str) -> str:
    """The tool that the subclass gives its agent, under this name, with this one parameter.

    It returns "value of KEY"; "missing" raises, and "rewarded" rewards its own step.
    """
    if key == "missing":
        raise KeyError("there is no such key")
    if key == "rewarded":
        lightningrl.reward(0.5)
    return f"value of {key}"


def script(request: dict[str, Any]) -> Answer:
    """The model: "use X" calls the first tool with X once, then anything is answered "done: ..."."""
    prompt = next(_text(one) for one in reversed(request["messages"]) if one["role"] == "user")
    used = any(one["role"] == "tool" for one in request["messages"])
    tools = request.get("tools") or []
    command, _, rest = prompt.partition(" ")
    if command == "use" and tools and not used:
        function = tools[0]["function"]
        parameter = next(iter(function["parameters"]["properties"]))
        arguments = json.dumps({parameter: rest})
        return Answer(tool_calls=(ToolCall("call-1", function["name"], arguments),))
    return Answer(f"done: {prompt}")


def _text(message: dict[str, Any]) -> str:
    content = message["content"]
    return content if isinstance(content, str) else "".join(part["text"] for part in content)


@dataclass(frozen=True)
class Recorded:
    """What the store holds of one attempt."""

    events: list[Event]

    @property
    def calls(self) -> list[CallEvent]:
        """Delivered model calls."""
        calls = [one for one in self.events if isinstance(one, CallEvent)]
        return [one for one in calls if one.status is CallStatus.DELIVERED]

    @property
    def starts(self) -> list[StepStartEvent]:
        """Steps, in order of their start."""
        return [one for one in self.events if isinstance(one, StepStartEvent)]

    @property
    def ends(self) -> dict[str, StepEndEvent]:
        """Step id -> its end."""
        return {one.step_id: one for one in self.events if isinstance(one, StepEndEvent)}

    @property
    def rewards(self) -> list[RewardEvent]:
        """Rewards that the agent emitted."""
        return [one for one in self.events if isinstance(one, RewardEvent)]

    def of(self, kind: StepKind) -> list[StepStartEvent]:
        """Steps of one kind."""
        return [one for one in self.starts if one.kind is kind]

    def ancestors(self, step_id: str) -> list[StepStartEvent]:
        """The steps around a step, the innermost first."""
        by_id = {one.step_id: one for one in self.starts}
        found: list[StepStartEvent] = []
        parent = by_id[step_id].parent_id  # pyright: ignore[reportArgumentType] - ids are texts
        while parent is not None:
            found.append(by_id[parent])
            parent = by_id[parent].parent_id
        return found

    def shape(self) -> list[tuple[str, str, str | None, list[str]]]:
        """The tree without ids: kind, name and agent of each step, with the kinds around it."""
        return [
            (one.kind, one.name, one.agent, [up.kind for up in self.ancestors(one.step_id)])
            for one in self.starts
        ]


@dataclass(frozen=True)
class CaptureLab:
    """A gateway with its store and a scripted model, and attempts that run there."""

    rig: GatewayRig
    model: ModelServer

    @asynccontextmanager
    async def attempt(self, sink: Sink | None = None) -> AsyncGenerator[RolloutContext]:
        """Run the block in an attempt; afterwards its events are in the store."""
        claim = await self.rig.claim()
        buffer = BufferSink()
        context = RolloutContext(
            rollout_id=claim.rollout.id,
            attempt_id=claim.attempt.id,
            server_url=self.rig.url,
            key=claim.key,
            sink=sink or buffer,
            aliases=frozenset({MODEL}),
        )
        try:
            with in_rollout(context):
                yield context
        finally:
            context.closed = True
            await self.rig.store.append(buffer.pending())

    async def recorded(self, context: RolloutContext) -> Recorded:
        """What the store holds of an attempt."""
        [events] = await self.rig.store.events([context.attempt_id])
        return Recorded(events)

    async def record(self, agent: Callable[[], Awaitable[object]]) -> Recorded:
        """Run `agent` in an attempt of its own and return what the store then holds."""
        async with self.attempt() as context:
            await agent()
        return await self.recorded(context)


@asynccontextmanager
async def open_lab(folder: Path, answer: Script = script) -> AsyncGenerator[CaptureLab]:
    """A lab whose store is in `folder`, for as long as the block runs."""
    with ModelServer(answer) as model:
        async with open_rig(folder) as rig:
            await rig.register(model.url, name=MODEL)
            yield CaptureLab(rig, model)


class _BrokenSink:
    """A sink that can't take anything."""

    def emit(self, event: Event) -> None:
        raise OSError(f"this sink is broken, {event.id!r} is lost")


class AdapterContract:
    """Inherit, give the four methods, and every claim below is tested on your framework.

    Agents are ordinary code of the framework: their clients read `OPENAI_BASE_URL` and
    `OPENAI_API_KEY`, they call the model `MODEL`, and their tool is `lookup`.
    """

    # -- what a subclass gives -----------------------------------------------------------------

    def make_adapter(self) -> Adapter:
        """A fresh adapter, not installed."""
        raise NotImplementedError

    async def ask(self, prompt: str, *, stream: bool = False) -> str:
        """Let an agent named "asker", without tools, answer `prompt`; return its answer."""
        raise NotImplementedError

    async def ask_with_tool(self, prompt: str, *, stream: bool = False) -> str:
        """Let an agent named "worker" with the tool `lookup` answer `prompt`."""
        raise NotImplementedError

    async def ask_through_sub_agent(self, prompt: str) -> str:
        """Let "outer" answer; its only tool runs "inner", an agent with the tool `lookup`."""
        raise NotImplementedError

    # -- the place -----------------------------------------------------------------------------

    @pytest_asyncio.fixture
    async def lab(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> AsyncIterator[CaptureLab]:
        """The lab, with the environment that a runner makes before it imports user code."""
        async with open_lab(tmp_path) as lab:
            monkeypatch.setenv("OPENAI_BASE_URL", f"{lab.rig.url}/v1")
            monkeypatch.setenv("OPENAI_API_KEY", "lightningrl-placeholder")
            yield lab

    @pytest.fixture(autouse=True)
    def adapter(self) -> Iterator[Adapter]:
        """The adapter, installed."""
        install_client_patch()
        adapter = self.make_adapter()
        adapter.install()
        yield adapter
        adapter.uninstall()
        uninstall_client_patch()

    # -- the claims ----------------------------------------------------------------------------

    async def test_one_call_is_one_joined_step(self, lab: CaptureLab) -> None:
        """The gateway's call and the adapter's step have one id, and the agent's name."""
        found = await lab.record(lambda: self.ask("hello"))
        [call] = found.calls
        [step] = found.of(StepKind.LLM)
        assert call.step_id == step.step_id
        assert call.agent == step.agent == "asker"
        assert found.ends[step.step_id].error is None

    async def test_the_answer_is_the_models(self, lab: CaptureLab) -> None:
        """Capture changes nothing of what the agent gets."""
        async with lab.attempt():
            assert await self.ask("hello") == "done: hello"
            assert await self.ask("hello", stream=True) == "done: hello"

    async def test_every_step_that_began_has_ended(self, lab: CaptureLab) -> None:
        """Also where the framework stops reading a stream early."""
        found = await lab.record(lambda: self.ask_with_tool("use a", stream=True))
        assert {one.step_id for one in found.starts} == set(found.ends)

    async def test_a_tool_step_has_inputs_output_and_call_id(self, lab: CaptureLab) -> None:
        """And belongs to the agent that asked for it."""
        found = await lab.record(lambda: self.ask_with_tool("use a"))
        [tool] = found.of(StepKind.TOOL)
        assert (tool.name, tool.inputs, tool.tool_call_id) == ("lookup", {"key": "a"}, "call-1")
        assert tool.agent == "worker"
        assert found.ends[tool.step_id].output == "value of a"
        assert found.ends[tool.step_id].error is None

    async def test_a_failing_tool_has_an_error_and_no_output(self, lab: CaptureLab) -> None:
        """Whatever the framework tells the model about it."""
        async with lab.attempt() as context:
            with suppress(KeyError):  # frameworks may let a tool's exception end the agent
                await self.ask_with_tool("use missing")
        found = await lab.recorded(context)
        [tool] = found.of(StepKind.TOOL)
        end = found.ends[tool.step_id]
        assert end.error is not None
        assert end.output is None

    async def test_a_reward_inside_a_tool_rewards_its_step(self, lab: CaptureLab) -> None:
        """`lightningrl.reward` needs no step id there."""
        found = await lab.record(lambda: self.ask_with_tool("use rewarded"))
        [tool] = found.of(StepKind.TOOL)
        [reward] = found.rewards
        assert (reward.step_id, reward.value) == (tool.step_id, 0.5)

    async def test_streaming_gives_the_same_steps(self, lab: CaptureLab) -> None:
        """The same kinds, names, agents and tree, and as many calls."""
        whole = await lab.record(lambda: self.ask_with_tool("use a", stream=False))
        streamed = await lab.record(lambda: self.ask_with_tool("use a", stream=True))
        assert streamed.shape() == whole.shape()
        assert len(streamed.calls) == len(whole.calls) == len(whole.of(StepKind.LLM))

    async def test_a_sub_agent_hangs_below_the_tool_that_runs_it(self, lab: CaptureLab) -> None:
        """Its model calls and tools are its own, not the outer agent's."""
        found = await lab.record(lambda: self.ask_through_sub_agent("use use a"))
        by_agent = {one.agent for one in found.calls}
        assert by_agent == {"outer", "inner"}
        [inner_tool] = [one for one in found.of(StepKind.TOOL) if one.agent == "inner"]
        [outer_tool] = [one for one in found.of(StepKind.TOOL) if one.agent == "outer"]
        assert outer_tool.step_id in [up.step_id for up in found.ancestors(inner_tool.step_id)]
        for step in found.of(StepKind.LLM):
            around = [up.step_id for up in found.ancestors(step.step_id)]
            assert (outer_tool.step_id in around) == (step.agent == "inner")

    async def test_sixteen_rollouts_at_once_never_mix(self, lab: CaptureLab) -> None:
        """Each attempt has its own prompts and steps, whole, and no other's."""

        async def run(index: int) -> tuple[int, Recorded]:
            stream = index % 2 == 1
            one = lab.record(lambda: self.ask_with_tool(f"use key-{index}", stream=stream))
            return index, await one

        for index, found in await asyncio.gather(*(run(index) for index in range(16))):
            assert len(found.calls) == 2
            for call in found.calls:
                assert f"use key-{index}" in call.request.decode()
            assert {one.step_id for one in found.calls} == {
                one.step_id for one in found.of(StepKind.LLM)
            }
            [tool] = found.of(StepKind.TOOL)
            assert tool.inputs == {"key": f"key-{index}"}

    async def test_outside_a_rollout_calls_are_refused_and_nothing_is_recorded(
        self, lab: CaptureLab
    ) -> None:
        """A call that nobody can assign is never filed under somebody."""
        async with lab.attempt() as context:
            with in_rollout(None), pytest.raises(Exception, match="belongs to no rollout"):
                await self.ask("hello")
        found = await lab.recorded(context)
        assert (found.calls, found.starts) == ([], [])
        assert lab.model.calls == 0

    async def test_a_broken_sink_does_not_reach_the_agent(self, lab: CaptureLab) -> None:
        """Its events are lost, its answer isn't, and the gateway still has the calls."""
        async with lab.attempt(sink=_BrokenSink()) as context:
            assert await self.ask_with_tool("use a") != ""
        found = await lab.recorded(context)
        assert (len(found.calls), found.starts) == (2, [])

    async def test_uninstalled_it_records_nothing(self, lab: CaptureLab, adapter: Adapter) -> None:
        """The agent runs on, its calls are recorded by the gateway alone."""
        adapter.uninstall()
        found = await lab.record(lambda: self.ask_with_tool("use a"))
        assert [one for one in found.events if not isinstance(one, CallEvent | LogEvent)] == []
        assert len(found.calls) == 2

    async def test_installing_twice_records_once(self, lab: CaptureLab, adapter: Adapter) -> None:
        """By the same adapter, and by a second one."""
        adapter.install()
        second = self.make_adapter()
        second.install()
        found = await lab.record(lambda: self.ask_with_tool("use a"))
        second.uninstall()
        assert len(found.of(StepKind.LLM)) == len(found.calls) == 2
        assert len(found.of(StepKind.TOOL)) == 1
