"""Lets LangChain hand the capture handler to every run, and runs LangChain's own objects.

Invariant: nothing of LangChain is replaced. `install` adds one entry to the list of handlers that
LangChain itself configures each run with, and `uninstall` takes it out again.
"""

from __future__ import annotations

from contextvars import ContextVar
from typing import Any, ClassVar

from langchain_core.runnables import Runnable, RunnableConfig
from langchain_core.tracers import context as tracing
from langchain_core.tracers.context import register_configure_hook

from lightningrl.capture.adapter import AgentCall, check_version
from lightningrl.capture.context import current
from lightningrl.errors import ConfigError
from lightningrl_langchain.handler import CaptureHandler

_HANDLER: ContextVar[CaptureHandler | None] = ContextVar(
    "lightningrl_langchain_handler",
    # The default, so that threads have it too. It keeps nothing.
    default=CaptureHandler(),  # noqa: B039
)


class LangChainAdapter:
    """Captures LangChain agents and LangGraph graphs; found by the runner through its entry point."""

    name: ClassVar[str] = "langchain"
    framework: ClassVar[str] = "langchain-core"
    versions: ClassVar[tuple[str, str]] = ("1.4", "2")

    _installed: ClassVar[set[LangChainAdapter]] = set()
    """Those that need the handler."""

    def install(self) -> None:
        """Add the handler to every run; a second time, or by a second adapter, changes nothing.

        Raises:
            ConfigError: LangChain's version is not one of `versions`, or its list of hooks is missing.
        """
        if not any(hook[0] is _HANDLER for hook in _hooks()):
            check_version(type(self))
            # With the class, a handler that the user gave to a run is not joined by a second one.
            register_configure_hook(_HANDLER, inheritable=True, handle_class=CaptureHandler)
        self._installed.add(self)

    def uninstall(self) -> None:
        """Take the handler out again, with the last adapter that is installed; runs that are under way keep it."""
        if self not in self._installed:
            return
        self._installed.discard(self)
        if not self._installed:
            hooks = _hooks()
            hooks[:] = [hook for hook in hooks if hook[0] is not _HANDLER]

    def wrap(self, agent: Any, *, fresh: bool) -> AgentCall | None:  # noqa: ARG002 - either will do
        """How to run a graph, an agent, or any other runnable; its output is what `ainvoke` returns.

        All of them keep a conversation in their checkpointer alone, under a thread id: each attempt has
        its own, so rollouts may share the object.
        """
        if not isinstance(agent, Runnable):
            return None

        async def run(given: Any) -> Any:
            context = current()
            thread = None if context is None else context.attempt_id
            return await agent.ainvoke(given, RunnableConfig(configurable={"thread_id": thread}))

        return run


def _hooks() -> list[Any]:
    # LangChain can register a hook and not take it back, so its list is looked at.
    hooks = getattr(tracing, "_configure_hooks", None)
    if not isinstance(hooks, list):
        raise ConfigError(
            "langchain_core.tracers.context has no list _configure_hooks, so its runs can't be captured; "
            "install a version of langchain-core that the adapter names, or give CaptureHandler() as "
            "a callback"
        )
    return hooks
