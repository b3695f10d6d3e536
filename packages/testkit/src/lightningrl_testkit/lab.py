"""A place where real agents make real model calls, and where what is then in the store can be looked at.

Invariant: the gateway, its store, HTTP and the agents are real; only the model behind them is scripted,
and its answer follows from the request alone.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import Any

import lightningrl
from lightningrl.capture.context import RolloutContext, in_rollout
from lightningrl.capture.sink import BufferSink, Sink
from lightningrl.schema import (
    CallEvent,
    CallStatus,
    Event,
    RewardEvent,
    StepEndEvent,
    StepKind,
    StepStartEvent,
)
from lightningrl_testkit.gateway import GatewayRig, open_rig
from lightningrl_testkit.model_server import Answer, ModelServer, Script, ToolCall

MODEL = "policy"
"""The model name that the agents of a lab call."""

LOOKUP_DESCRIPTION = "Look up the value of a key."

ELSEWHERE: ContextVar[Callable[[], Awaitable[object]] | None] = ContextVar(
    "elsewhere", default=None
)
"""What `lookup` does when it is asked for "elsewhere": run another agent, for example."""


async def lookup(key: str) -> str:
    """The tool that an adapter's author gives to agents, under this name, with this one parameter.

    It returns "value of KEY"; "missing" raises, "rewarded" rewards its own step, and "elsewhere" first
    awaits `ELSEWHERE`.
    """
    if key == "missing":
        raise KeyError("there is no such key")
    if key == "rewarded":
        lightningrl.reward(0.5)
    elsewhere = ELSEWHERE.get()
    if key == "elsewhere" and elsewhere is not None:
        await elsewhere()
    return f"value of {key}"


def script(request: dict[str, Any]) -> Answer:
    """The model, by the first word of the last user message.

    "use X" calls the first tool with X, "both X Y" calls it twice at once, "unknown X" calls a tool that
    does not exist, "fail" is an error of the engine. A tool's answer, and anything else, is answered
    "done: ...".
    """
    prompt = next(_text(one) for one in reversed(request["messages"]) if one["role"] == "user")
    used = any(one["role"] == "tool" for one in request["messages"])
    tools = request.get("tools") or []
    command, _, rest = prompt.partition(" ")
    if command == "fail":
        return Answer("told to fail", status=400)
    if not tools or used:
        return Answer(f"done: {prompt}")
    match command:
        case "use":
            return Answer(tool_calls=(_tool_call("call-1", tools[0], rest),))
        case "both":
            return Answer(
                tool_calls=tuple(
                    _tool_call(f"call-{number}", tools[0], key)
                    for number, key in enumerate(rest.split(" "), 1)
                )
            )
        case "unknown":
            return Answer(tool_calls=(ToolCall("call-1", "no_such_tool", '{"key": "a"}'),))
        case _:
            return Answer(f"done: {prompt}")


def _tool_call(call_id: str, tool: dict[str, Any], value: str) -> ToolCall:
    function = tool["function"]
    parameters = list((function.get("parameters") or {}).get("properties") or {})
    arguments = {parameters[0]: value} if parameters else {}
    return ToolCall(call_id, function["name"], json.dumps(arguments))


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
    def joined(self) -> set[str]:
        """Step ids of the delivered calls."""
        return {one.step_id for one in self.calls}

    @property
    def callers(self) -> list[str | None]:
        """The agent of each delivered call, in order."""
        return [one.agent for one in self.calls]

    @property
    def whole(self) -> bool:
        """Whether delivered calls and model steps are the same, and every step that began has ended."""
        asked = {one.step_id for one in self.of(StepKind.LLM)}
        return self.joined == asked and {one.step_id for one in self.starts} == set(self.ends)

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


async def in_threads_of_users(work: Callable[[], None]) -> None:
    """Run `work` in a thread that belongs to no rollout, then in one that is bound to the current one."""
    for target in (work, lightningrl.bind(work)):
        thread = Thread(target=target)
        thread.start()
        await asyncio.to_thread(thread.join)


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
            context.close()
            await self.rig.store.append(buffer.pending())

    def emitted(self, context: RolloutContext) -> Recorded:
        """What the agent's process has told so far of an attempt that still runs."""
        assert isinstance(context.sink, BufferSink)  # unless the test brought another
        return Recorded(list(context.sink.events))

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
