"""Capture without patching AutoGen: a model client around the user's own.

Invariant: it answers exactly as the inner client does; it only says whose call each call is.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any

from autogen_core import ComponentModel
from autogen_core.models import (
    ChatCompletionClient,
    CreateResult,
    LLMMessage,
    ModelInfo,
    RequestUsage,
)
from autogen_core.tools import Tool, ToolSchema

from lightningrl.capture.recording import record, record_stream
from lightningrl_autogen.steps import answer_of, open_call


class CaptureClient(ChatCompletionClient):
    """Records the calls of one client, of any provider, as one agent's."""

    component_type = "model"

    def __init__(self, inner: ChatCompletionClient, agent: str | None = None) -> None:
        self._inner = inner
        self._agent = agent

    async def create(self, messages: Sequence[LLMMessage], **kwargs: Any) -> CreateResult:
        """See `ChatCompletionClient.create`."""
        step = open_call(self._inner, messages, kwargs, self._agent)
        return await record(step, lambda: self._inner.create(messages, **kwargs), answer_of)

    async def create_stream(
        self, messages: Sequence[LLMMessage], **kwargs: Any
    ) -> AsyncGenerator[str | CreateResult, None]:
        """See `ChatCompletionClient.create_stream`."""
        step = open_call(self._inner, messages, kwargs, self._agent)
        items = record_stream(
            step, self._inner.create_stream(messages, **kwargs), CreateResult, answer_of
        )
        async with aclosing(items):
            async for item in items:
                yield item

    async def close(self) -> None:
        """Close the inner client."""
        await self._inner.close()

    def actual_usage(self) -> RequestUsage:
        """Of the inner client."""
        return self._inner.actual_usage()

    def total_usage(self) -> RequestUsage:
        """Of the inner client."""
        return self._inner.total_usage()

    def count_tokens(
        self, messages: Sequence[LLMMessage], *, tools: Sequence[Tool | ToolSchema] = ()
    ) -> int:
        """By the inner client."""
        return self._inner.count_tokens(messages, tools=tools)

    def remaining_tokens(
        self, messages: Sequence[LLMMessage], *, tools: Sequence[Tool | ToolSchema] = ()
    ) -> int:
        """By the inner client."""
        return self._inner.remaining_tokens(messages, tools=tools)

    @property
    def capabilities(self) -> Any:
        """AutoGen's deprecated name for `model_info`."""
        return self._inner.model_info

    @property
    def model_info(self) -> ModelInfo:
        """Of the inner client."""
        return self._inner.model_info

    def dump_component(self) -> ComponentModel:
        """The inner client's: what is loaded again is the user's own client."""
        return self._inner.dump_component()


def capture_client(inner: ChatCompletionClient, agent: str | None = None) -> CaptureClient:
    """Record the calls that `inner` makes in a rollout, as steps of `agent`.

    Args:
        inner: any model client.
        agent: the agent that uses it. `None`: the one that acts, if `AutoGenAdapter` is installed.
    """
    return CaptureClient(inner, agent)
