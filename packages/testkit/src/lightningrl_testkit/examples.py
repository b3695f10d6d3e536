"""The agents that an adapter's author writes, so that the contract can be tested on the framework."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from typing import ClassVar

from lightningrl.capture.adapter import Adapter


class ExampleAgents(ABC):
    """Ordinary code of the framework, as its users write it.

    Model clients read `OPENAI_BASE_URL` and `OPENAI_API_KEY`, call the model `lab.MODEL`, and do not try
    again after an error; the tool is `lab.lookup`. Where the framework's objects keep nothing of a
    conversation, one agent and one model client serve all calls.

    An example that the framework can't give stays as it is, and the contract's class says so in `gaps`.
    """

    packages: ClassVar[tuple[str, ...]]
    """Import names of the framework: what `uninstall` must leave as it was."""

    @abstractmethod
    def make_adapter(self) -> Adapter:
        """A fresh adapter, not installed."""

    @abstractmethod
    async def ask(self, prompt: str, *, stream: bool = False) -> str:
        """Let an agent named "asker", without tools, answer `prompt`; return its answer."""

    @abstractmethod
    async def ask_with_tool(self, prompt: str, *, stream: bool = False) -> str:
        """Let an agent named "worker" with the tool `lookup` answer `prompt`."""

    def ask_in_thread(self, prompt: str) -> str:
        """As `ask_with_tool`, called in a thread without an event loop."""
        return asyncio.run(self.ask_with_tool(prompt))

    async def ask_through_sub_agent(self, prompt: str) -> str:
        """Let "outer" answer; its only tool runs "inner", an agent with the tool `lookup`."""
        raise NotImplementedError

    async def hand_off(self, prompt: str) -> str:
        """Let "first" answer, whose only tool hands the conversation over to "second"."""
        raise NotImplementedError

    async def retrieve(self, query: str) -> None:
        """Let a retriever of the framework named "archive" find the text "found: QUERY"."""
        raise NotImplementedError
