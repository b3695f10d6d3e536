"""Capture by a run's configuration: models that say with each call whose it is, and nothing is patched.

Invariant: a model answers exactly as the one within it does; outside a rollout nothing is added to a request.
"""
# ruff: noqa: A002  the SDK names the parameter `input`

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from agents import Model, ModelProvider, ModelSettings

from lightningrl.capture.client import CallHeaders
from lightningrl.capture.recording import record, record_stream
from lightningrl_openai_agents import hooks


class CaptureProvider(ModelProvider):
    """Gives a run models that record their calls: `RunConfig(model_provider=CaptureProvider(inner))`.

    `inner` must send to the server's URL (`OpenAIProvider(base_url="http://SERVER/v1", api_key="none")`), since
    every call within a rollout carries the rollout's key there. It works with tracing off, and for agents that
    tools and handoffs run. An agent that holds a `Model` object of its own goes past every provider, unless
    `RunConfig.model` names another.
    """

    def __init__(self, inner: ModelProvider) -> None:
        self._inner = inner

    def get_model(self, model_name: str | None) -> Model:
        """The inner provider's model, recorded."""
        return CaptureModel(self._inner.get_model(model_name))

    async def aclose(self) -> None:
        """Close the inner provider."""
        await self._inner.aclose()


class CaptureModel(Model):
    """Records the calls of one model."""

    def __init__(self, inner: Model) -> None:
        self._inner = inner
        name = getattr(inner, "model", None)
        self.model = name if isinstance(name, str) else type(inner).__name__
        """The inner model's name, by which steps call it."""

    async def get_response(
        self,
        system_instructions: str | None,
        input: Any,
        model_settings: ModelSettings,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """See `Model.get_response`."""
        asked = (system_instructions, input, model_settings, *args)
        return await record(
            hooks.open_call(self._inner, asked, kwargs),
            lambda: self._inner.get_response(
                system_instructions, input, _tagged(model_settings), *args, **kwargs
            ),
            hooks.answer_of,
        )

    async def stream_response(
        self,
        system_instructions: str | None,
        input: Any,
        model_settings: ModelSettings,
        *args: Any,
        **kwargs: Any,
    ) -> AsyncIterator[Any]:
        """See `Model.stream_response`."""
        asked = (system_instructions, input, model_settings, *args)

        async def stream() -> AsyncIterator[Any]:
            # Begun where the step is current, which the headers name.
            inner: Any = self._inner.stream_response(
                system_instructions, input, _tagged(model_settings), *args, **kwargs
            )
            async with aclosing(inner):
                async for item in inner:
                    yield item

        step = hooks.open_call(self._inner, asked, kwargs)
        items = record_stream(step, stream(), hooks.LAST, hooks.last_answer_of)
        async with aclosing(items):
            async for item in items:
                yield item

    async def close(self) -> None:
        """Close the inner model."""
        await self._inner.close()

    def get_retry_advice(self, request: Any) -> Any:
        """Of the inner model."""
        return self._inner.get_retry_advice(request)

    async def _cleanup_on_run_end(self, owner: object) -> None:
        await self._inner._cleanup_on_run_end(owner)


def _tagged(settings: ModelSettings) -> ModelSettings:
    """The settings of a call that is made now, with whose it is."""
    headers = {**(settings.extra_headers or {}), **CallHeaders()}
    return dataclasses.replace(settings, extra_headers=headers) if headers else settings
