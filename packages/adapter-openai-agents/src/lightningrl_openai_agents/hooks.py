"""What spans don't tell: model calls of any model, and what tools and handoffs are called with.

Invariant: outside a rollout every wrapper is the original and nothing more; inside one, it returns,
raises and yields exactly what the original does.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from typing import Any

from agents import FunctionToolResult, ItemHelpers, Model, ModelBehaviorError, Span
from openai.types.responses import (
    ResponseCompletedEvent,
    ResponseFailedEvent,
    ResponseIncompleteEvent,
)

from lightningrl.capture.context import STEP, Step, current, describe_error, end_step, start_step
from lightningrl.capture.jsonable import tool_arguments
from lightningrl.capture.recording import record, record_stream, start_outermost
from lightningrl.capture.variables import PLACEHOLDER_KEY
from lightningrl.schema import StepKind
from lightningrl_openai_agents.spans import PENDING, close_span, note_error, open_span, step_of

LAST = (ResponseCompletedEvent, ResponseFailedEvent, ResponseIncompleteEvent)
"""With what a model's stream ends."""

_HTTP_CLIENT = "_lightningrl_http_client"

Async = Callable[..., Awaitable[Any]]


# -- spans -----------------------------------------------------------------------------------------


def follow_start(original: Callable[..., None]) -> Callable[..., None]:
    """For `Span.start`, also of the spans that do nothing because tracing is off."""

    @functools.wraps(original)
    def start(self: Span[Any], *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        open_span(self)

    return start


def follow_finish(original: Callable[..., None]) -> Callable[..., None]:
    """For `Span.finish`."""

    @functools.wraps(original)
    def finish(self: Span[Any], *args: Any, **kwargs: Any) -> None:
        close_span(self)
        original(self, *args, **kwargs)

    return finish


def follow_error(original: Callable[..., None]) -> Callable[..., None]:
    """For `Span.set_error`: without tracing a span doesn't keep it."""

    @functools.wraps(original)
    def set_error(self: Span[Any], error: Any) -> None:
        original(self, error)
        step = step_of(self)
        if step is not None:
            note_error(step, error)

    return set_error


# -- model calls -----------------------------------------------------------------------------------


def record_response(original: Async) -> Async:
    """For `Model.get_response`."""

    @functools.wraps(original)
    async def get_response(self: Model, *args: Any, **kwargs: Any) -> Any:
        step = open_call(self, args, kwargs)
        return await record(step, lambda: original(self, *args, **kwargs), answer_of)

    return get_response


def record_response_stream(original: Callable[..., AsyncIterator[Any]]) -> Callable[..., Any]:
    """For `Model.stream_response`."""

    @functools.wraps(original)
    async def stream_response(self: Model, *args: Any, **kwargs: Any) -> Any:
        step = open_call(self, args, kwargs)
        items = record_stream(step, original(self, *args, **kwargs), LAST, last_answer_of)
        async with aclosing(items):
            async for item in items:
                yield item

    return stream_response


def open_call(model: Model, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Step | None:
    """Begin a model step. `None`: outside a rollout, or within the step of a model around this one."""
    name = getattr(model, "model", None)
    return start_outermost(
        StepKind.LLM,
        name if isinstance(name, str) else type(model).__name__,
        asks=lambda: _request({**dict(zip(_ASKED, args, strict=False)), **kwargs}),
    )


_ASKED = ("system_instructions", "input", "model_settings", "tools")
"""The first parameters of `Model.get_response` and of `Model.stream_response`."""


def answer_of(response: Any) -> Any:
    """What a step keeps of a model's response."""
    return response.output


def last_answer_of(event: Any) -> Any:
    """The same of a stream's last event."""
    return event.response.output


def _request(given: Mapping[str, Any]) -> dict[str, Any]:
    """What a model is asked, in the words of the SDK: items, settings that are set, and tools' schemas."""
    settings = given["model_settings"].to_json_dict()
    tools = given["tools"]
    return {
        "instructions": given["system_instructions"],
        "messages": ItemHelpers.input_to_new_input_list(given["input"]),
        "settings": {key: value for key, value in settings.items() if value is not None},
        "tools": [
            {
                "name": tool.name,
                "description": getattr(tool, "description", None),
                "parameters": getattr(tool, "params_json_schema", None),
            }
            for tool in tools
        ],
    }


# -- tools and handoffs ----------------------------------------------------------------------------


def record_tool(original: Async) -> Async:
    """For the method that runs one function tool: a function, an MCP tool, an agent as a tool."""

    @functools.wraps(original)
    async def run_tool(self: Any, *, func_tool: Any, tool_call: Any, **rest: Any) -> Any:
        step = _open_tool(StepKind.TOOL, func_tool.name, tool_call)

        async def call() -> Any:
            result = await original(self, func_tool=func_tool, tool_call=tool_call, **rest)
            if step is not None and step.error is None:
                _note_result(step, result)
            return result

        return await record(step, call)

    return run_tool


def _note_result(step: Step, result: Any) -> None:
    """A tool that did not run, for want of a person's approval, returns what says so."""
    if isinstance(result, FunctionToolResult):
        step.error = f"not run: {result.output or 'it waits for approval'}"
        step.output = None  # up to 0.19 the tool's span has the whole result for its output
    else:
        step.output = result


def record_handoff(original: Async) -> Async:
    """For the function that hands off: of several handoffs the SDK takes the first."""

    @functools.wraps(original)
    async def execute_handoffs(*, run_handoffs: Sequence[Any], **rest: Any) -> Any:
        taken = run_handoffs[0]
        step = _open_tool(StepKind.HANDOFF, taken.handoff.tool_name, taken.tool_call)
        return await record(step, lambda: original(run_handoffs=run_handoffs, **rest))

    return execute_handoffs


def record_unknown_tools(original: Callable[..., Any]) -> Callable[..., Any]:
    """For the function that finds an answer's tools: a call of one that does not exist runs nothing."""

    @functools.wraps(original)
    def process_model_response(*, response: Any, **rest: Any) -> Any:
        try:
            processed = original(response=response, **rest)
        except ModelBehaviorError as error:
            for call in response.output:
                if f"Tool {getattr(call, 'name', None)} not found" in str(error):
                    _record_unknown(call, describe_error(error))
            raise
        # Told to the model instead, where `RunConfig.tool_not_found_behavior` says so.
        for missing in processed.function_tools_not_found:
            _record_unknown(missing.tool_call, f"Tool {missing.tool_name} not found")
        return processed

    return process_model_response


def _record_unknown(tool_call: Any, error: str) -> None:
    step = _open_tool(StepKind.TOOL, tool_call.name, tool_call)
    if step is not None:
        end_step(step, error=error)


def note_failure(original: Async) -> Async:
    """For the function that tells the model of a tool's exception; spans get it without its text."""

    @functools.wraps(original)
    async def tell_model(*, error: BaseException, **rest: Any) -> Any:
        _note_exception(error)
        return await original(error=error, **rest)

    return tell_model


def note_timeout(original: Callable[..., None]) -> Callable[..., None]:
    """For the exception of a tool's timeout, which the SDK may make into an answer without raising."""

    @functools.wraps(original)
    def initialise(self: BaseException, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        _note_exception(self)

    return initialise


def _note_exception(error: BaseException) -> None:
    step = STEP.get()
    if step is not None and step.kind is StepKind.TOOL:
        step.error = describe_error(error)


def _open_tool(kind: StepKind, name: str, tool_call: Any) -> Step | None:
    if current() is None:
        return None
    return start_step(
        kind,
        name,
        inputs=tool_arguments(tool_call.arguments),
        tool_call_id=tool_call.call_id,
        owner=PENDING,
    )


# -- connections -----------------------------------------------------------------------------------


def client_per_loop(original: Callable[[], Any]) -> Callable[[], Any]:
    """For the function that makes the HTTP client which all of the SDK's OpenAI clients share.

    Its connections belong to an event loop. Rollouts in threads (`Runner.run_sync`) have one each.
    """

    @functools.wraps(original)
    def shared_http_client() -> Any:
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            loop = None
        if current() is None or loop is None:
            return original()
        # Kept by the loop itself: connections refer to their loop, and both shall go together.
        kept = vars(loop)
        if _HTTP_CLIENT not in kept:
            kept[_HTTP_CLIENT] = type(original())()
        return kept[_HTTP_CLIENT]

    return shared_http_client


def keep_traces(original: Callable[..., None]) -> Callable[..., None]:
    """For `BackendSpanExporter.export`: a runner's placeholder is no key to send traces with."""

    @functools.wraps(original)
    def export(self: Any, items: Sequence[Any], *args: Any, **kwargs: Any) -> None:
        keyed = [one for one in items if (one.tracing_api_key or self.api_key) != PLACEHOLDER_KEY]
        if keyed:
            original(self, keyed, *args, **kwargs)

    return export
