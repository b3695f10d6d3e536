"""The toy framework's adapter, right in all things, and its example agents."""

from __future__ import annotations

import json
from contextlib import AbstractContextManager
from typing import Any, ClassVar

from toy_framework import Agent, Archive, Handoff

import lightningrl
from lightningrl.capture.context import Step
from lightningrl.capture.patching import Patches
from lightningrl_testkit.examples import ExampleAgents
from lightningrl_testkit.lab import MODEL, lookup


class ToyAdapter:
    """What the variants below change one thing of."""

    name: ClassVar[str] = "toy"
    framework: ClassVar[str] = "pytest"
    versions: ClassVar[tuple[str, str]] = ("9", "10")

    patches: ClassVar[Patches] = Patches()
    users: ClassVar[set[ToyAdapter]] = set()
    """Those that are installed: the first one hooks."""

    def install(self) -> None:
        if not self.users:
            self.hook()
        self.users.add(self)

    def uninstall(self) -> None:
        self.users.discard(self)
        if not self.users:
            self.unhook()

    def hook(self) -> None:
        for owner, name, make in (
            (Agent, "run", self.on_run),
            (Agent, "think", self.on_think),
            (Agent, "use", self.on_use),
            (Archive, "search", self.on_search),
        ):
            self.patches.replace(owner, name, make)

    def unhook(self) -> None:
        self.patches.undo()

    def wrap(self, agent: Any, *, fresh: bool) -> None:
        return None

    def on_run(self, original: Any) -> Any:
        async def run(agent: Agent, prompt: str, **rest: Any) -> str:
            with self.agent_step(agent):
                return await original(agent, prompt, **rest)

        return run

    def agent_step(self, agent: Agent) -> AbstractContextManager[Step]:
        return lightningrl.step("agent", agent.name, agent=agent.name)

    def on_think(self, original: Any) -> Any:
        async def think(agent: Agent, messages: list[Any], *, stream: bool) -> Any:
            with self.model_step(agent, stream):
                return await original(agent, messages, stream=stream)

        return think

    def model_step(self, agent: Agent, stream: bool) -> AbstractContextManager[Step]:
        return lightningrl.step("llm", MODEL)

    def on_use(self, original: Any) -> Any:
        async def use(agent: Agent, call: dict[str, Any]) -> Any:
            inputs = json.loads(call["function"]["arguments"])
            with self.tool_step(agent, call["id"], call["function"]["name"], inputs) as step:
                result = await original(agent, call)
                if call["function"]["name"] in agent.tools:
                    step.output = result["content"]
                else:
                    step.error = result["content"]
                return result

        return use

    def tool_step(
        self, agent: Agent, call_id: str, name: str, inputs: Any
    ) -> AbstractContextManager[Step]:
        kind = "handoff" if isinstance(agent.tools.get(name), Handoff) else "tool"
        return lightningrl.step(kind, name, inputs=inputs, tool_call_id=call_id)

    def on_search(self, original: Any) -> Any:
        async def search(archive: Archive, query: str) -> Any:
            with lightningrl.step("retrieval", "archive", inputs=query) as step:
                step.output = await original(archive, query)
                return step.output

        return search


class ToyAgents(ExampleAgents):
    """The framework's example agents."""

    packages = ("toy_framework",)
    adapter: type[ToyAdapter] = ToyAdapter

    def make_adapter(self) -> ToyAdapter:
        return self.adapter()

    async def ask(self, prompt: str, *, stream: bool = False) -> str:
        return await Agent("asker").run(prompt, stream=stream)

    async def ask_with_tool(self, prompt: str, *, stream: bool = False) -> str:
        return await Agent("worker", {"lookup": lookup}).run(prompt, stream=stream)

    async def ask_through_sub_agent(self, prompt: str) -> str:
        inner = Agent("inner", {"lookup": lookup})
        return await Agent("outer", {"ask_inner": lambda key: inner.run(key)}).run(prompt)

    async def hand_off(self, prompt: str) -> str:
        return await Agent("first", {"to_second": Handoff(Agent("second"))}).run(prompt)

    async def retrieve(self, query: str) -> None:
        await Archive().search(query)
