"""The callback handler that records what LangChain and LangGraph do.

Invariant: it reads what LangChain says and changes nothing of it. Whatever goes wrong in it, LangChain
logs, and the agent goes on.

What becomes a step: models, tools, retrievers; agents of `create_agent`, under their name; and the nodes
of other graphs, each an agent by the node's name. Other runs (prompts, parsers, sequences, the graph
itself) only pass on where they are.
"""
# ruff: noqa: ARG002  LangChain names what it gives; most of it is not needed here

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast
from uuid import UUID

from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.documents import Document
from langchain_core.messages import AIMessage, BaseMessage, ToolMessage, convert_to_openai_messages
from langchain_core.outputs import LLMResult

from lightningrl.capture.context import end_step, note_answer, start_step
from lightningrl.schema import StepKind
from lightningrl_langchain.runs import (
    Run,
    begin,
    enter,
    finish,
    leave,
    node_of,
    open_step,
    runs,
)

_NO_NAME = "LangGraph"
"""What LangGraph calls a graph that nobody named."""
_REACT_NODE = "agent"
"""The node of `create_react_agent` that calls the model."""
_MODEL_KEYS = ("model", "model_name", "model_id")


class CaptureHandler(BaseCallbackHandler):
    """Records one rollout's steps; one object may serve all rollouts of a process, at once.

    `LangChainAdapter.install()` gives it to every run. Without that, give it to those that count:
    `graph.invoke(state, {"callbacks": [CaptureHandler()]})`.
    """

    # In the caller's own context: a step that is set current elsewhere would not reach the request.
    run_inline = True

    # -- agents, nodes, and what is around them ------------------------------------------------

    def on_chain_start(
        self, serialized: Any, inputs: Any, *, run_id: UUID, parent_run_id: UUID | None = None,
        tags: list[str] | None = None, metadata: dict[str, Any] | None = None, **kwargs: Any,
    ) -> None:  # fmt: skip
        """An agent, a node of a graph, or any other chain begins."""
        run = begin(run_id, parent_run_id)
        if run is None:
            return
        about, name = metadata or {}, str(kwargs.get("name") or "")
        node = node_of(name, tags, about)
        if node is None:
            _open_agent(run, name, about)
            return
        if run.parent is None or not run.parent.is_agent:
            open_step(run, StepKind.AGENT, node, agent=_acting(run, node))
        enter(run)

    def on_chain_end(
        self, outputs: Any, *, run_id: UUID, parent_run_id: UUID | None = None, **kwargs: Any
    ) -> None:
        """It ended; a tool that a node could not find is in what the node returned."""
        run = finish(run_id)
        if run is not None and run.root.asked:
            for message in _tool_messages(outputs):
                _record_unknown(run, message)

    def on_chain_error(
        self,
        error: BaseException,
        *,
        run_id: UUID,
        parent_run_id: UUID | None = None,
        **kwargs: Any,
    ) -> None:
        """It raised, was cancelled, or was interrupted."""
        finish(run_id, error=_error(error))

    # -- model calls ---------------------------------------------------------------------------

    def on_chat_model_start(
        self, serialized: dict[str, Any], messages: Any, *, run_id: UUID,
        parent_run_id: UUID | None = None, metadata: dict[str, Any] | None = None, **kwargs: Any,
    ) -> None:  # fmt: skip
        """A chat model is called."""
        run = begin(run_id, parent_run_id)
        if run is not None:
            parameters = kwargs.get("invocation_params")
            open_step(
                run,
                StepKind.LLM,
                _model(parameters, metadata),
                asks=lambda: {
                    **(parameters or {}),
                    "messages": [_said(one) for one in messages[0]],
                },
            )
            enter(run)

    def on_llm_start(
        self, serialized: dict[str, Any], prompts: list[str], *, run_id: UUID,
        parent_run_id: UUID | None = None, metadata: dict[str, Any] | None = None, **kwargs: Any,
    ) -> None:  # fmt: skip
        """A completion model is called."""
        self.on_chat_model_start(
            serialized,
            [prompts],
            run_id=run_id,
            parent_run_id=parent_run_id,
            metadata=metadata,
            **kwargs,
        )

    def on_llm_new_token(self, token: Any, *, run_id: UUID, **kwargs: Any) -> None:
        """The request has left: what the reader of the stream does now is not the model's doing."""
        known = runs()
        run = None if known is None else known.get(run_id)
        if run is not None and run.before is not None:
            leave(run)

    def on_llm_end(self, response: LLMResult, *, run_id: UUID, **kwargs: Any) -> None:
        """It answered; note who asked for which tool call."""
        known, generations = runs(), response.generations[0] if response.generations else ()
        if known is not None and run_id in known and generations:
            note_answer(known[run_id].step, lambda: _said(generations[0]))
        run = finish(run_id)
        if run is None or run.step is None:
            return
        for generation in generations:
            message = getattr(generation, "message", None)
            if isinstance(message, AIMessage):
                ids = [one["id"] for one in message.tool_calls if one["id"] is not None]
                run.root.asked.update(dict.fromkeys(ids, run.step.agent))

    def on_llm_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> None:
        """It failed, or nobody reads its stream any more."""
        finish(run_id, error=_error(error))

    # -- tools and retrievers ------------------------------------------------------------------

    def on_tool_start(
        self, serialized: dict[str, Any], input_str: str, *, run_id: UUID,
        parent_run_id: UUID | None = None, inputs: dict[str, Any] | None = None, **kwargs: Any,
    ) -> None:  # fmt: skip
        """A tool is called; it belongs to the agent whose model asked for it."""
        run = begin(run_id, parent_run_id)
        if run is None:
            return
        call_id = cast("str | None", kwargs.get("tool_call_id"))
        open_step(
            run,
            StepKind.TOOL,
            kwargs.get("name") or serialized.get("name") or "tool",
            agent=None if call_id is None else run.root.asked.pop(call_id, None),
            inputs=input_str if inputs is None else inputs,
            tool_call_id=call_id,
        )
        enter(run)

    def on_tool_end(self, output: Any, *, run_id: UUID, **kwargs: Any) -> None:
        """It returned; a command to go on elsewhere in a graph is a handoff."""
        known = runs()
        run = None if known is None else known.get(run_id)
        if run is None:
            return
        target = _target(output)
        if target is not None and run.step is not None:
            agent, parent = run.step.agent, run.step
            end_step(start_step(StepKind.HANDOFF, target, agent=agent, parent=parent))
        if isinstance(output, ToolMessage) and output.status == "error":
            finish(run_id, error=str(output.text))
        else:
            finish(run_id, output=output.content if isinstance(output, ToolMessage) else output)

    def on_tool_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> None:
        """It raised."""
        finish(run_id, error=_error(error))

    def on_retriever_start(
        self, serialized: Any, query: str, *, run_id: UUID, parent_run_id: UUID | None = None,
        **kwargs: Any,
    ) -> None:  # fmt: skip
        """Documents are looked for."""
        run = begin(run_id, parent_run_id)
        if run is not None:
            open_step(run, StepKind.RETRIEVAL, kwargs.get("name") or "retriever", inputs=query)
            enter(run)

    def on_retriever_end(
        self, documents: Sequence[Document], *, run_id: UUID, **kwargs: Any
    ) -> None:
        """They were found."""
        finish(run_id, output=list(documents))

    def on_retriever_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> None:
        """They were not."""
        finish(run_id, error=_error(error))


def _open_agent(run: Run, name: str, metadata: Mapping[str, Any]) -> None:
    """Give a run a step, if it is a whole agent of `create_agent`.

    All runs within an agent carry its name, so it begins where the name changes, or where a run is
    called by the name (an agent that a tool of its own runs again). An agent without a name is called
    as the node or tool that it is.
    """
    agent = cast("str | None", metadata.get("lc_agent_name"))
    if name == _NO_NAME and metadata.get("ls_integration") == "langchain_create_agent":
        around = run.step
        if around is None:
            agent = name
        else:
            agent = around.name if around.kind is StepKind.TOOL else around.agent or name
    elif agent is None or (agent == run.agent_name and name != agent):
        return
    run.agent_name, run.is_agent = agent, True
    open_step(run, StepKind.AGENT, agent, agent=agent)


def _acting(run: Run, node: str) -> str:
    """The agent that acts in a node: of that name, but for the node that every `create_react_agent` has."""
    around = run.step
    if node == _REACT_NODE and around is not None and around.kind is StepKind.AGENT:
        return around.agent or node
    return node


def _model(parameters: Mapping[str, Any] | None, metadata: Mapping[str, Any] | None) -> str:
    for key in _MODEL_KEYS:
        if parameters and parameters.get(key):
            return str(parameters[key])
    return str((metadata or {}).get("ls_model_name") or "model")


def _said(one: Any) -> Any:
    """A message, a generation of one, or a text: as chat completions have messages, or the text."""
    message = getattr(one, "message", one)
    if isinstance(message, BaseMessage):
        return convert_to_openai_messages(message)
    return getattr(message, "text", message)


def _record_unknown(run: Run, message: ToolMessage) -> None:
    """Record a tool call that was answered by an error although no tool took it."""
    if message.status == "error" and message.tool_call_id in run.root.asked:
        step = start_step(
            StepKind.TOOL,
            message.name or "unknown",
            agent=run.root.asked.pop(message.tool_call_id),
            tool_call_id=message.tool_call_id,
            parent=run.step,
        )
        end_step(step, error=str(message.text))


def _tool_messages(outputs: Any) -> Iterator[ToolMessage]:
    """The tool messages that a node returned: in its state's `messages`, in a command, or in a list."""
    if isinstance(outputs, ToolMessage):
        yield outputs
    elif isinstance(outputs, Mapping):
        yield from _tool_messages(cast("Mapping[str, Any]", outputs).get("messages"))
    elif isinstance(outputs, list):
        for one in cast("list[Any]", outputs):
            yield from _tool_messages(one)


def _target(output: Any) -> str | None:
    """The node at which a tool's command lets its graph go on. `None`: it is no such command."""
    goto = getattr(output, "goto", None)
    return goto if isinstance(goto, str) and goto else None


def _error(error: BaseException) -> BaseException | None:
    """The error of a step. LangGraph also raises where it waits for a person, or goes on elsewhere."""
    bubbles = any(kind.__name__ == "GraphBubbleUp" for kind in type(error).__mro__)
    return None if bubbles else error
