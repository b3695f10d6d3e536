"""What each hook records: agents, model calls and tools, with whatever the framework knows about them.

Invariant: outside a rollout every wrapper is the original and nothing more; inside one, it returns,
raises and yields exactly what the original does. A stream's step is current while the framework makes
its updates, and not where they are read.
"""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from agent_framework import ChatResponse, Content, Message, ResponseStream

from lightningrl.capture.context import Step, current, end_step, note_answer, start_step
from lightningrl.capture.jsonable import tool_arguments
from lightningrl.capture.recording import part_of, record, start_outermost
from lightningrl.schema import StepKind


def record_run(original: Callable[..., Any]) -> Callable[..., Any]:
    """For `RawAgent.run`, which returns an awaitable or a stream."""

    @functools.wraps(original)
    def run(self: Any, *args: Any, **kwargs: Any) -> Any:
        if current() is None:
            return original(self, *args, **kwargs)
        name = self.name or type(self).__name__
        step = start_step(StepKind.AGENT, name, agent=name)
        return _as_step(step, lambda: original(self, *args, **kwargs))

    return run


def record_response(original: Callable[..., Any]) -> Callable[..., Any]:
    """For `_inner_get_response` of each chat client: one request to a model."""

    @functools.wraps(original)
    def _inner_get_response(self: Any, **kwargs: Any) -> Any:
        options = kwargs.get("options") or {}
        name = str(options.get("model") or getattr(self, "model", None) or type(self).__name__)
        step = start_outermost(
            StepKind.LLM, name, asks=lambda: _request(kwargs.get("messages") or (), options)
        )
        if step is None:
            return original(self, **kwargs)
        return _as_step(step, lambda: original(self, **kwargs), _answer)

    return _inner_get_response


def _request(messages: Sequence[Message], options: Mapping[str, Any]) -> dict[str, Any]:
    said = {key: value for key, value in options.items() if key != "tools" and value is not None}
    tools = options.get("tools") or ()
    return {
        "messages": [one.to_dict() for one in messages],
        "tools": [getattr(one, "to_json_schema_spec", lambda one=one: one)() for one in tools],
        "options": said,
    }


def _answer(response: Any) -> list[dict[str, Any]]:
    return [one.to_dict() for one in response.messages]


def _as_step(
    step: Step, call: Callable[[], Any], answer: Callable[[Any], Any] | None = None
) -> Any:
    """The awaitable or stream that `call` returns, as `step`."""
    with part_of(step):
        result = call()
    if not isinstance(result, ResponseStream):
        return record(step, lambda: result, answer)
    result.with_pull_context_manager(lambda: _pull(step, result))
    return result.with_cleanup_hook(lambda: end_step(step))  # nobody reads on


@contextmanager
def _pull(step: Step, stream: ResponseStream[Any, Any]) -> Generator[None]:
    """Around the making of one update."""
    with part_of(step):
        try:
            yield
        except StopAsyncIteration:
            if step.kind is StepKind.LLM:
                note_answer(step, lambda: _answer(ChatResponse.from_updates(stream.updates)))
            end_step(step)
            raise


def record_tool(original: Callable[..., Awaitable[Content]]) -> Callable[..., Any]:
    """For `_auto_invoke_function`, which also answers calls of unknown tools and broken arguments."""

    @functools.wraps(original)
    async def _auto_invoke_function(
        function_call_content: Content, *args: Any, **kwargs: Any
    ) -> Content:
        call = function_call_content
        if call.type != "function_call" and call.function_call is not None:
            call = call.function_call  # a person approved it
        if current() is None or call.name is None:
            return await original(function_call_content, *args, **kwargs)
        given = tool_arguments(call.arguments)
        step = start_step(StepKind.TOOL, call.name, inputs=given, tool_call_id=call.call_id)

        async def invoke() -> Content:
            result = await original(function_call_content, *args, **kwargs)
            if result.exception is None:
                step.output = result.result
            else:
                step.error = str(result.exception)
            return result

        return await record(step, invoke)

    return _auto_invoke_function
