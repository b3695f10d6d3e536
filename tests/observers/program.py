"""A program in production that others watch too: run in an environment of its own, with what it watches by.

`python program.py PEER ORDER STORE OPENAI_URL KEY`: makes one call of each kind within one rollout, and prints how
many spans the peer saw, where it can be asked.
"""

# ruff: noqa: T201  the test reads what is printed
# pyright: reportMissingImports=false
from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from typing import Any

import anthropic
import openai

import lightningrl

MODEL = "gpt-x"
HELLO: list[Any] = [{"role": "user", "content": "hello"}]
Seen = Callable[[], int]


def openinference() -> Seen:
    from openinference.instrumentation.anthropic import AnthropicInstrumentor
    from openinference.instrumentation.openai import OpenAIInstrumentor
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    spans = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    OpenAIInstrumentor().instrument(tracer_provider=provider)
    AnthropicInstrumentor().instrument(tracer_provider=provider)
    return lambda: len(spans.get_finished_spans())


def langfuse() -> Seen:
    import langfuse.openai

    assert langfuse.openai
    return lambda: -1


def sentry() -> Seen:
    import sentry_sdk

    sentry_sdk.init(dsn=None, traces_sample_rate=1.0)
    return lambda: -1


def langsmith() -> Seen:
    from langsmith.wrappers import wrap_openai

    global wrapped
    wrapped = (
        wrap_openai  # its `wrap_anthropic` fails with the streams of anthropic 2.15, without us too
    )
    return lambda: -1


def plain(client: Any) -> Any:
    return client


wrapped: Callable[[Any], Any] = plain
PEERS = {one.__name__: one for one in (openinference, langfuse, sentry, langsmith)}


def everything() -> Seen:
    counts = [peer() for peer in PEERS.values()]
    return counts[0]


def calls(url: str, key: str) -> None:
    client = wrapped(openai.OpenAI(base_url=url, api_key=key))
    client.chat.completions.create(model=MODEL, messages=HELLO)
    for _ in client.chat.completions.create(model=MODEL, messages=HELLO, stream=True):
        pass
    client.responses.create(model=MODEL, input="hello")
    for _ in client.responses.create(model=MODEL, input="hello", stream=True):
        pass
    other = anthropic.Anthropic(base_url=url.removesuffix("/v1"), api_key=key)
    asked: Any = {"model": MODEL, "max_tokens": 9, "messages": HELLO}
    other.messages.create(**asked)
    for _ in other.messages.create(**asked, stream=True):
        pass


async def async_calls(url: str, key: str) -> None:
    client = wrapped(openai.AsyncOpenAI(base_url=url, api_key=key))
    await client.chat.completions.create(model=MODEL, messages=HELLO)
    async for _ in await client.chat.completions.create(model=MODEL, messages=HELLO, stream=True):
        pass
    await client.chat.completions.with_raw_response.create(model=MODEL, messages=HELLO)
    other = anthropic.AsyncAnthropic(base_url=url.removesuffix("/v1"), api_key=key)
    asked: Any = {"model": MODEL, "max_tokens": 9, "messages": HELLO}
    await other.messages.create(**asked)
    async for _ in await other.messages.create(**asked, stream=True):
        pass


def main(peer: str, order: str, store: str, url: str, key: str) -> None:
    watch = PEERS.get(peer, everything)
    seen = watch() if order == "after" else None
    recorder = lightningrl.record(store)
    assert recorder is not None
    seen = seen or watch()
    with lightningrl.rollout({"task": "sync"}):
        calls(url, key)

    async def rollout() -> None:
        async with lightningrl.rollout({"task": "async"}):
            await async_calls(url, key)

    asyncio.run(rollout())
    recorder.close()
    print(seen())


if __name__ == "__main__":
    main(*sys.argv[1:])
