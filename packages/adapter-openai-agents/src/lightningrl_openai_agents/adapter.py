"""Installs the hooks, and runs the SDK's agents.

Invariant: `install` wraps every present and future class of spans and models once, and `uninstall`
leaves the SDK as it was. Spans are followed where they start and finish, not by a processor: users
replace processors, switch tracing off, and count on nothing else being sent to the default exporter.
"""

from __future__ import annotations

from typing import Any, ClassVar

from agents import Agent, Model, Runner, Span, ToolTimeoutError
from agents import tool as sdk_tool
from agents.models import openai_provider
from agents.run_internal import tool_execution, turn_resolution
from agents.tracing.processors import BackendSpanExporter

from lightningrl.capture.adapter import AgentCall
from lightningrl.capture.patching import Patches, PatchingAdapter
from lightningrl.errors import AgentError
from lightningrl_openai_agents import hooks


class OpenAIAgentsAdapter(PatchingAdapter):
    """Captures the OpenAI Agents SDK; found by the runner through its entry point."""

    name: ClassVar[str] = "openai-agents"
    framework: ClassVar[str] = "openai-agents"
    versions: ClassVar[tuple[str, str]] = ("0.19", "0.25")

    followed: ClassVar[type] = Span

    def hook(self, patches: Patches) -> None:
        """Replace what runs tools, handoffs and models, and follow spans wherever they start and finish."""
        executor = tool_execution._FunctionToolBatchExecutor
        patches.replace(executor, "_run_single_tool", hooks.record_tool)
        patches.replace(turn_resolution, "execute_handoffs", hooks.record_handoff)
        patches.replace(turn_resolution, "process_model_response", hooks.record_unknown_tools)
        patches.replace(
            sdk_tool, "maybe_invoke_function_tool_failure_error_function", hooks.note_failure
        )
        patches.replace(ToolTimeoutError, "__init__", hooks.note_timeout)
        patches.replace(openai_provider, "shared_http_client", hooks.client_per_loop)
        # `shutdown` exports by a method of its own where there is one.
        for name in ("export", "_export_with_deadline"):
            patches.replace_own(BackendSpanExporter, name, hooks.keep_traces)
        patches.follow(Span, self._hook_span)
        patches.follow(Model, self._hook_model)

    def wrap(self, agent: Any, *, fresh: bool) -> AgentCall | None:  # noqa: ARG002 - see below
        """How to run an `Agent`; its output is the run's final output.

        Agents keep nothing of their runs, so one may be shared by all rollouts.
        """
        if not isinstance(agent, Agent):
            return None
        return lambda given: _run(agent, given)

    def _hook_span(self, kind: type) -> None:
        self._patches.replace_own(kind, "start", hooks.follow_start)
        self._patches.replace_own(kind, "finish", hooks.follow_finish)
        self._patches.replace_own(kind, "set_error", hooks.follow_error)

    def _hook_model(self, kind: type) -> None:
        self._patches.replace_own(kind, "get_response", hooks.record_response)
        self._patches.replace_own(kind, "stream_response", hooks.record_response_stream)


async def _run(agent: Agent[Any], given: Any) -> Any:
    if isinstance(given, dict):
        raise AgentError(
            f"the agent {agent.name!r} takes a text or input items and the task is a JSON object; name an "
            "`input:` function in the recipe that makes one of the other"
        )
    return (await Runner.run(agent, given)).final_output
