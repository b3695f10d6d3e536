"""Installs the hooks, and runs the framework's own agents.

Invariant: `uninstall` leaves the framework as it was, chat clients that are defined later included.
"""

from __future__ import annotations

from typing import Any, ClassVar

from agent_framework import BaseAgent, BaseChatClient, RawAgent, _tools

from lightningrl.capture.adapter import AgentCall
from lightningrl.capture.patching import Patches, PatchingAdapter
from lightningrl_agent_framework import steps


class AgentFrameworkAdapter(PatchingAdapter):
    """Captures the Microsoft Agent Framework; found by the runner through its entry point."""

    name: ClassVar[str] = "agent-framework"
    framework: ClassVar[str] = "agent-framework-core"
    versions: ClassVar[tuple[str, str]] = ("1.23", "2")

    followed: ClassVar[type] = BaseChatClient

    def hook(self, patches: Patches) -> None:
        """Replace what runs agents, requests and tools."""
        patches.replace(RawAgent, "run", steps.record_run)
        patches.replace(_tools, "_auto_invoke_function", steps.record_tool)
        patches.follow(
            BaseChatClient,
            lambda kind: patches.replace_own(kind, "_inner_get_response", steps.record_response),
        )

    def wrap(self, agent: Any, *, fresh: bool) -> AgentCall | None:  # noqa: ARG002 - either will do
        """How to run an agent; its output is the text of its answer.

        An agent keeps its conversation in a session, and each run has one of its own, so rollouts may
        share the agent.
        """
        if not isinstance(agent, BaseAgent):
            return None
        run: Any = getattr(agent, "run")  # noqa: B009 - the base class leaves it to those below

        async def call(given: Any) -> Any:
            return (await run(given)).text

        return call
