"""What each hook records: agent, model and tool steps, with whatever AutoGen knows about them.

Invariant: outside a rollout every wrapper is the original and nothing more; inside one, it returns,
raises and yields exactly what the original does.
"""

from __future__ import annotations

import copy
import functools
import inspect
import json
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing
from typing import Any

from autogen_agentchat.base import Response
from autogen_core import FunctionCall, MessageHandlerContext
from autogen_core.models import ChatCompletionClient, CreateResult, FunctionExecutionResult

from lightningrl.capture.context import (
    AGENT,
    STEP,
    Place,
    Step,
    at,
    bind,
    current,
    end_step,
    here,
    inside,
    start_step,
    stream_inside,
)
from lightningrl.schema import StepKind

_ORIGIN = "_lightningrl_origin"


# -- model calls -----------------------------------------------------------------------------------


def open_call(client: ChatCompletionClient, agent: str | None = None) -> Step | None:
    """Begin a model step. `None`: outside a rollout, or within another client's step (a cache's)."""
    step = STEP.get()
    if current() is None or (step is not None and step.kind is StepKind.LLM):
        return None
    return start_step(StepKind.LLM, _model(client), agent=agent or AGENT.get() or _actor())


def record_create(original: Callable[..., Awaitable[CreateResult]]) -> Callable[..., Any]:
    """For `ChatCompletionClient.create`."""

    @functools.wraps(original)
    async def create(self: ChatCompletionClient, *args: Any, **kwargs: Any) -> CreateResult:
        return await record(open_call(self), lambda: original(self, *args, **kwargs))

    return create


def record_create_stream(original: Callable[..., AsyncIterator[Any]]) -> Callable[..., Any]:
    """For `ChatCompletionClient.create_stream`."""

    @functools.wraps(original)
    async def create_stream(self: ChatCompletionClient, *args: Any, **kwargs: Any) -> Any:
        items = record_stream(open_call(self), original(self, *args, **kwargs), CreateResult)
        async with aclosing(items):
            async for item in items:
                yield item

    return create_stream


def _model(client: ChatCompletionClient) -> str:
    # AutoGen's OpenAI clients have no public attribute for it.
    arguments: dict[str, Any] = getattr(client, "_create_args", {})
    return str(arguments.get("model", type(client).__name__))


def _actor() -> str | None:
    """The type of the runtime's agent that handles a message now, without the team's id.

    It names whoever calls a model without being a chat agent, as `SelectorGroupChatManager` does.
    """
    try:
        return MessageHandlerContext.agent_id().type.partition("_")[0]
    except RuntimeError:
        return None


# -- agents ----------------------------------------------------------------------------------------


def record_messages(original: Callable[..., Awaitable[Response]]) -> Callable[..., Any]:
    """For `on_messages`."""

    @functools.wraps(original)
    async def on_messages(self: Any, *args: Any, **kwargs: Any) -> Response:
        return await record(_open_agent(self), lambda: original(self, *args, **kwargs))

    return on_messages


def record_messages_stream(original: Callable[..., AsyncIterator[Any]]) -> Callable[..., Any]:
    """For `on_messages_stream`."""

    @functools.wraps(original)
    async def on_messages_stream(self: Any, *args: Any, **kwargs: Any) -> Any:
        # AutoGen leaves off reading at the response, so that is the agent's end.
        items = record_stream(_open_agent(self), original(self, *args, **kwargs), Response)
        async with aclosing(items):
            async for item in items:
                yield item

    return on_messages_stream


def _open_agent(agent: Any) -> Step | None:
    """Begin an agent's step. `None`: outside a rollout, or it is begun (one method calls the other)."""
    step = STEP.get()
    if current() is None or (step is not None and step.owner is agent):
        return None
    return start_step(StepKind.AGENT, agent.name, agent=agent.name, owner=agent)


# -- tools -----------------------------------------------------------------------------------------


def record_tool_call(
    original: Callable[..., Awaitable[tuple[FunctionCall, FunctionExecutionResult]]],
) -> Callable[..., Any]:
    """For `AssistantAgent._execute_tool_call`, which also sees unknown tools and broken arguments."""

    @functools.wraps(original)
    async def _execute_tool_call(
        tool_call: FunctionCall, workbench: Any, handoff_tools: Sequence[Any], **rest: Any
    ) -> tuple[FunctionCall, FunctionExecutionResult]:
        if current() is None:
            return await original(tool_call, workbench, handoff_tools, **rest)
        handoff = any(tool.name == tool_call.name for tool in handoff_tools)
        step = start_step(
            StepKind.HANDOFF if handoff else StepKind.TOOL,
            tool_call.name,
            inputs=_arguments(tool_call),
            tool_call_id=tool_call.id,
        )
        with inside(step):
            try:
                call, result = await original(tool_call, workbench, handoff_tools, **rest)
            except BaseException as error:
                end_step(step, error=error)
                raise
        if result.is_error:
            end_step(step, error=result.content)
        else:
            end_step(step, output=result.content)
        return call, result

    return _execute_tool_call


def carry_into_threads(original: Callable[..., Awaitable[Any]]) -> Callable[..., Any]:
    """For `FunctionTool.run`, which runs plain functions in an executor, without our context."""

    @functools.wraps(original)
    async def run(self: Any, *args: Any, **kwargs: Any) -> Any:
        if current() is not None and not inspect.iscoroutinefunction(self._func):
            tool = copy.copy(self)
            tool._func = bind(self._func)
            return await original(tool, *args, **kwargs)
        return await original(self, *args, **kwargs)

    return run


def _arguments(tool_call: FunctionCall) -> Any:
    try:
        return json.loads(tool_call.arguments)
    except json.JSONDecodeError:
        return tool_call.arguments


# -- the runtime -----------------------------------------------------------------------------------


def mark_origin(original: Callable[..., None]) -> Callable[..., None]:
    """For the `__init__` of message envelopes: note from where in which rollout it is sent."""

    @functools.wraps(original)
    def initialise(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        setattr(self, _ORIGIN, here())

    return initialise


def return_to_origin(original: Callable[..., Awaitable[Any]]) -> Callable[..., Any]:
    """For the runtime's `_process_*`: handle a message in the rollout that sent it.

    A runtime that outlives rollouts works in the context in which it was started; a message without
    a rollout is then handled outside all of them, where its calls are refused.
    """

    @functools.wraps(original)
    async def process(self: Any, message_envelope: Any) -> Any:
        origin: Place | None = getattr(message_envelope, _ORIGIN, None)
        if origin is None:
            return await original(self, message_envelope)
        with at(origin):
            return await original(self, message_envelope)

    return process


# -- shared ----------------------------------------------------------------------------------------


async def record(step: Step | None, call: Callable[[], Awaitable[Any]]) -> Any:
    """Return what `call` returns, as `step`; `None`: as no step."""
    if step is None:
        return await call()
    with inside(step):
        try:
            result = await call()
        except BaseException as error:
            end_step(step, error=error)
            raise
    end_step(step)
    return result


async def record_stream(
    step: Step | None, items: AsyncIterator[Any], last: type
) -> AsyncGenerator[Any, None]:
    """Yield from `items`, as `step`, which ends with the first item of type `last`."""
    if step is not None:
        items = stream_inside(step, items)
    try:
        async for item in items:
            if step is not None and isinstance(item, last):
                end_step(step)
            yield item
    except BaseException as error:
        if step is not None:
            end_step(step, error=error)
        raise
    finally:
        close = getattr(items, "aclose", None)
        if close is not None:
            await close()
    if step is not None:
        end_step(step)
