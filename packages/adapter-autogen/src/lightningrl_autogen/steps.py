"""What each hook records: agent, model and tool steps, with whatever AutoGen knows about them.

Invariant: outside a rollout every wrapper is the original and nothing more; inside one, it returns,
raises and yields exactly what the original does.
"""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from typing import Any

from autogen_agentchat.base import Response
from autogen_core import FunctionCall, MessageHandlerContext
from autogen_core.code_executor import CodeBlock, CodeResult
from autogen_core.memory import Memory, MemoryContent, MemoryQueryResult, UpdateContextResult
from autogen_core.models import (
    ChatCompletionClient,
    CreateResult,
    FunctionExecutionResult,
    LLMMessage,
)
from autogen_core.tools import Tool

from lightningrl.capture.context import (
    AGENT,
    STEP,
    Place,
    Step,
    at,
    bind,
    current,
    here,
    start_step,
)
from lightningrl.capture.jsonable import tool_arguments
from lightningrl.capture.recording import record, record_stream, start_outermost
from lightningrl.schema import StepKind

_ORIGIN = "_lightningrl_origin"


# -- model calls -----------------------------------------------------------------------------------


def open_call(
    client: ChatCompletionClient,
    messages: Sequence[LLMMessage],
    options: Mapping[str, Any],
    agent: str | None = None,
) -> Step | None:
    """Begin a model step. `None`: outside a rollout, or within another client's step (a cache's)."""
    agent = agent or AGENT.get() or _actor()
    return start_outermost(
        StepKind.LLM, _model(client), agent=agent, asks=lambda: _request(messages, options)
    )


def _request(messages: Sequence[LLMMessage], options: Mapping[str, Any]) -> dict[str, Any]:
    tools = options.get("tools") or ()
    return {
        "messages": list(messages),
        "tools": [one.schema if isinstance(one, Tool) else one for one in tools],
        "options": options.get("extra_create_args") or {},
    }


def record_create(original: Callable[..., Awaitable[CreateResult]]) -> Callable[..., Any]:
    """For `ChatCompletionClient.create`."""

    @functools.wraps(original)
    async def create(
        self: ChatCompletionClient, messages: Sequence[LLMMessage], **kwargs: Any
    ) -> CreateResult:
        step = open_call(self, messages, kwargs)
        return await record(step, lambda: original(self, messages, **kwargs), answer_of)

    return create


def record_create_stream(original: Callable[..., AsyncIterator[Any]]) -> Callable[..., Any]:
    """For `ChatCompletionClient.create_stream`."""

    @functools.wraps(original)
    async def create_stream(
        self: ChatCompletionClient, messages: Sequence[LLMMessage], **kwargs: Any
    ) -> Any:
        step = open_call(self, messages, kwargs)
        items = record_stream(step, original(self, messages, **kwargs), CreateResult, answer_of)
        async with aclosing(items):
            async for item in items:
                yield item

    return create_stream


def answer_of(result: CreateResult) -> Any:
    """What a step keeps of a model's answer."""
    return result


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
            inputs=tool_arguments(tool_call.arguments),
            tool_call_id=tool_call.id,
        )

        async def call() -> tuple[FunctionCall, FunctionExecutionResult]:
            given, result = await original(tool_call, workbench, handoff_tools, **rest)
            if result.is_error:
                step.error = result.content
            else:
                step.output = result.content
            return given, result

        return await record(step, call)

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


def record_code(original: Callable[..., Awaitable[CodeResult]]) -> Callable[..., Any]:
    """For `CodeExecutor.execute_code_blocks`, unless a tool that is a step itself asks for it."""

    @functools.wraps(original)
    async def execute_code_blocks(
        self: Any, code_blocks: Sequence[CodeBlock], *args: Any, **kwargs: Any
    ) -> CodeResult:
        step = start_outermost(StepKind.TOOL, "execute_code", inputs=code_blocks)

        async def call() -> CodeResult:
            result = await original(self, code_blocks, *args, **kwargs)
            if step is not None:
                failed = f"exit code {result.exit_code}: {result.output}"
                step.output, step.error = (
                    (result.output, None) if result.exit_code == 0 else (None, failed)
                )
            return result

        return await record(step, call)

    return execute_code_blocks


# -- memories --------------------------------------------------------------------------------------


def record_query(original: Callable[..., Awaitable[MemoryQueryResult]]) -> Callable[..., Any]:
    """For `Memory.query`."""

    @functools.wraps(original)
    async def query(self: Memory, query: Any, *args: Any, **kwargs: Any) -> MemoryQueryResult:
        step = start_outermost(StepKind.RETRIEVAL, _memory(self), inputs=_content(query))

        async def call() -> MemoryQueryResult:
            result = await original(self, query, *args, **kwargs)
            if step is not None:
                step.output = [_content(one) for one in result.results]
            return result

        return await record(step, call)

    return query


def record_update(original: Callable[..., Awaitable[UpdateContextResult]]) -> Callable[..., Any]:
    """For `Memory.update_context`, by which an agent asks its memories before it asks its model."""

    @functools.wraps(original)
    async def update_context(self: Memory, *args: Any, **kwargs: Any) -> UpdateContextResult:
        step = start_outermost(StepKind.RETRIEVAL, _memory(self))

        async def call() -> UpdateContextResult:
            result = await original(self, *args, **kwargs)
            if step is not None:
                step.output = [_content(one) for one in result.memories.results]
            return result

        return await record(step, call)

    return update_context


def _memory(memory: Memory) -> str:
    return str(getattr(memory, "name", None) or type(memory).__name__)


def _content(found: Any) -> Any:
    return found.content if isinstance(found, MemoryContent) else found


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
