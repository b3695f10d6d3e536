"""Installs the hooks, and runs AutoGen's own objects.

Invariant: `install` wraps every present and future class of agents and model clients once, and
`uninstall` leaves AutoGen as it was. Hook points and their traps: AutoGen 0.7.5, its last series.
"""

from __future__ import annotations

from typing import Any, ClassVar

from autogen_agentchat.agents import AssistantAgent, BaseChatAgent
from autogen_agentchat.base import ChatAgent, Team
from autogen_agentchat.messages import StructuredMessage
from autogen_core import SingleThreadedAgentRuntime, _single_threaded_agent_runtime
from autogen_core.code_executor import CodeExecutor
from autogen_core.memory import Memory
from autogen_core.models import ChatCompletionClient
from autogen_core.tools import FunctionTool

from lightningrl.capture.adapter import AgentCall, describe
from lightningrl.capture.patching import Patches, PatchingAdapter
from lightningrl.errors import AgentError, ConfigError
from lightningrl_autogen import steps
from lightningrl_autogen.client import CaptureClient


class AutoGenAdapter(PatchingAdapter):
    """Captures AutoGen AgentChat; found by the runner through its entry point."""

    name: ClassVar[str] = "autogen"
    framework: ClassVar[str] = "autogen-agentchat"
    versions: ClassVar[tuple[str, str]] = ("0.7.5", "0.8")

    followed: ClassVar[type] = BaseChatAgent

    def hook(self, patches: Patches) -> None:
        """Replace what runs agents, requests, tools, memories and code, and what the runtime does with messages."""
        patches.replace(AssistantAgent, "_execute_tool_call", steps.record_tool_call)
        patches.replace(FunctionTool, "run", steps.carry_into_threads)
        for envelope in ("SendMessageEnvelope", "PublishMessageEnvelope"):
            kind = getattr(_single_threaded_agent_runtime, envelope)
            patches.replace(kind, "__init__", steps.mark_origin)
        for process in ("_process_send", "_process_publish"):
            patches.replace(SingleThreadedAgentRuntime, process, steps.return_to_origin)
        patches.follow(BaseChatAgent, self._hook_agent)
        patches.follow(ChatCompletionClient, self._hook_client)
        patches.follow(Memory, self._hook_memory)
        patches.follow(CodeExecutor, self._hook_executor)

    def wrap(self, agent: Any, *, fresh: bool) -> AgentCall | None:
        """How to run a chat agent or a team; its output is its last message.

        Raises:
            ConfigError: the object is shared between rollouts, which would share its conversation.
        """
        if not isinstance(agent, ChatAgent | Team):
            return None
        if not fresh:
            raise ConfigError(
                f"agent: {describe(agent)} keeps its conversation, so rollouts can't share one; name a "
                "function without parameters that builds it"
            )
        return lambda given: _run(agent, given)

    def _hook_agent(self, kind: type) -> None:
        self._patches.replace_own(kind, "on_messages", steps.record_messages)
        self._patches.replace_own(kind, "on_messages_stream", steps.record_messages_stream)

    def _hook_client(self, kind: type) -> None:
        if issubclass(kind, CaptureClient):
            return  # it records by itself, as the agent that it was given
        self._patches.replace_own(kind, "create", steps.record_create)
        self._patches.replace_own(kind, "create_stream", steps.record_create_stream)

    def _hook_memory(self, kind: type) -> None:
        self._patches.replace_own(kind, "query", steps.record_query)
        self._patches.replace_own(kind, "update_context", steps.record_update)

    def _hook_executor(self, kind: type) -> None:
        self._patches.replace_own(kind, "execute_code_blocks", steps.record_code)


async def _run(agent: ChatAgent | Team, given: Any) -> Any:
    if isinstance(given, dict):
        raise AgentError(
            "AutoGen takes a text or messages and the task is a JSON object; name an `input:` function "
            "in the recipe that makes one of the other"
        )
    result = await agent.run(task=given)
    last = result.messages[-1]
    return last.content if isinstance(last, StructuredMessage) else last.to_text()
