"""A framework of agents, small and whole, for an adapter that can be wrong in one thing at a time."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, ClassVar
from weakref import WeakKeyDictionary

from openai import AsyncOpenAI, DefaultAsyncHttpxClient

from lightningrl_testkit.lab import MODEL

SCHEMA = {"type": "object", "properties": {"key": {"type": "string"}}}
_HTTP: WeakKeyDictionary[Any, AsyncOpenAI] = WeakKeyDictionary()
REGISTRY: list[object] = []
"""Where the framework lets others register."""


def model_client() -> AsyncOpenAI:
    """One for each event loop, at the address that the environment names now."""
    loop = asyncio.get_running_loop()
    if loop not in _HTTP:
        http = DefaultAsyncHttpxClient(verify=False)
        _HTTP[loop] = AsyncOpenAI(max_retries=0, http_client=http)
    return _HTTP[loop].with_options(base_url=os.environ["OPENAI_BASE_URL"])


class Agent:
    """Calls its model and its tools until there is no tool to call."""

    headers: ClassVar[dict[str, str]] = {}
    """Of every request."""

    def __init__(
        self, name: str, tools: Mapping[str, Callable[..., Awaitable[str]]] | None = None
    ) -> None:
        self.name = name
        self.tools = dict(tools or {})

    async def run(self, prompt: str, *, stream: bool = False) -> str:
        messages: list[Any] = [{"role": "user", "content": prompt}]
        while True:
            message = await self.think(messages, stream=stream)
            messages.append(message)
            if not message.get("tool_calls"):
                return message["content"]
            messages += await asyncio.gather(*(self.use(one) for one in message["tool_calls"]))
            for one in message["tool_calls"]:
                tool = self.tools.get(one["function"]["name"])
                if isinstance(tool, Handoff):
                    return await tool.to.run(prompt)

    async def think(self, messages: list[Any], *, stream: bool) -> dict[str, Any]:
        tools = [
            {"type": "function", "function": {"name": name, "parameters": SCHEMA}}
            for name in self.tools
        ]
        request: dict[str, Any] = {
            "model": MODEL,
            "messages": messages,
            "extra_headers": self.headers,
        }
        if tools:
            request["tools"] = tools
        if not stream:
            reply = await model_client().chat.completions.create(**request)
            return reply.choices[0].message.model_dump(exclude_none=True)
        message: dict[str, Any] = {"role": "assistant", "content": "", "tool_calls": []}
        async with model_client().chat.completions.stream(**request) as events:
            async for event in events:
                if event.type == "content.delta":
                    message["content"] += event.delta
            whole = (await events.get_final_completion()).choices[0].message
        return whole.model_dump(exclude_none=True)

    async def use(self, call: dict[str, Any]) -> dict[str, Any]:
        function = call["function"]
        if function["name"] not in self.tools:
            content = f"there is no tool {function['name']!r}"
        else:
            content = await self.tools[function["name"]](**json.loads(function["arguments"]))
        return {"role": "tool", "tool_call_id": call["id"], "content": content}


class Handoff:
    """A tool after which another agent goes on."""

    def __init__(self, to: Agent) -> None:
        self.to = to

    async def __call__(self, key: str) -> str:
        return f"over to {self.to.name}"


class Archive:
    """A retriever."""

    async def search(self, query: str) -> list[str]:
        return [f"found: {query}"]
