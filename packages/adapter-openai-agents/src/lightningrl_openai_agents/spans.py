"""Steps from the SDK's own spans: agents, tools, handoffs, guardrails and, by processor, model calls.

Invariant: a step is current exactly where its span is, and ends with it; outside a rollout a span is a
span and nothing more. Nothing here raises: it runs inside the user's agent.
"""

from __future__ import annotations

import sys
from contextvars import Token
from dataclasses import dataclass
from typing import Any

from agents.tracing import (
    AgentSpanData,
    FunctionSpanData,
    GenerationSpanData,
    GuardrailSpanData,
    HandoffSpanData,
    ResponseSpanData,
    Span,
    Trace,
    TracingProcessor,
)

from lightningrl.capture.context import AGENT, STEP, Step, current, end_step, start_step
from lightningrl.schema import StepKind

PENDING = object()
"""Owner of a step that a hook has opened for the span that the SDK will start next."""

_OPENED = "_lightningrl_opened"

_KINDS: dict[type, StepKind] = {
    AgentSpanData: StepKind.AGENT,
    FunctionSpanData: StepKind.TOOL,
    GenerationSpanData: StepKind.LLM,
    GuardrailSpanData: StepKind.GUARDRAIL,
    HandoffSpanData: StepKind.HANDOFF,
    ResponseSpanData: StepKind.LLM,
}


@dataclass(slots=True)
class _Opened:
    """The step of a span that has started."""

    step: Step
    tokens: tuple[Token[Step | None], Token[str | None]] | None
    """To leave the step. `None`: whoever opened the step ends it."""
    handled: BaseException | None
    """What was being handled when the span started, and so is no error of it."""


def open_span(span: Span[Any]) -> None:
    """Begin the step of a span that starts now, and make it current."""
    data: Any = span.span_data
    kind = _KINDS.get(type(data))
    if kind is None or current() is None or _OPENED in vars(span):
        return
    step = STEP.get()
    tokens = None
    if not _is_for(step, kind):
        name = _name(data)
        step = start_step(kind, name, agent=name if kind is StepKind.AGENT else None, owner=span)
        tokens = STEP.set(step), AGENT.set(step.agent)
    assert step is not None  # a step that is for the span is one
    step.owner = span
    vars(span)[_OPENED] = _Opened(step, tokens, sys.exc_info()[1])


def close_span(span: Span[Any]) -> None:
    """End the step of a span that finishes now."""
    opened: _Opened | None = vars(span).pop(_OPENED, None)
    if opened is None:
        return
    step = opened.step
    if span.error is not None:
        note_error(step, span.error)
    if step.error is None and step.output is None:
        step.output = _output(span.span_data)
    if opened.tokens is None:
        return
    _leave(opened.tokens)
    raised = sys.exc_info()[1]
    end_step(step, error=None if raised is opened.handled else raised)


def step_of(span: Span[Any]) -> Step | None:
    """The step of a span that has started and not finished."""
    opened: _Opened | None = vars(span).get(_OPENED)
    return None if opened is None else opened.step


def note_error(step: Step, error: Any) -> None:
    """Give `step` the error that the SDK gives its span, unless the exception itself is known."""
    if step.error is None:
        detail = (error.get("data") or {}).get("error")
        step.error = f"{error['message']}: {detail}" if detail else str(error["message"])


class CaptureProcessor(TracingProcessor):
    """Records what runs in a rollout, and patches nothing: `agents.add_trace_processor` takes it.

    It sees what the SDK traces: nothing where tracing is off, and no inputs and call ids of tools.
    """

    def on_trace_start(self, trace: Trace) -> None:
        """Nothing: an agent's span is its step."""

    def on_trace_end(self, trace: Trace) -> None:
        """Nothing."""

    def on_span_start(self, span: Span[Any]) -> None:
        """Begin the span's step."""
        open_span(span)

    def on_span_end(self, span: Span[Any]) -> None:
        """End the span's step."""
        close_span(span)

    def shutdown(self) -> None:
        """Nothing: events are with the rollout already."""

    def force_flush(self) -> None:
        """Nothing: events are with the rollout already."""


def _is_for(step: Step | None, kind: StepKind) -> bool:
    """Whether a hook opened the current step for such a span; one model call may have two spans."""
    if step is None or step.kind is not kind:
        return False
    return step.owner is PENDING or kind is StepKind.LLM


def _name(data: Any) -> str:
    if isinstance(data, GenerationSpanData):
        return data.model or "model"
    if isinstance(data, HandoffSpanData):
        return f"handoff from {data.from_agent}"
    return getattr(data, "name", data.type)


def _output(data: Any) -> Any:
    if isinstance(data, FunctionSpanData):
        return data.output
    if isinstance(data, GuardrailSpanData):
        return {"triggered": data.triggered}
    return data.to_agent if isinstance(data, HandoffSpanData) else None


def _leave(tokens: tuple[Token[Step | None], Token[str | None]]) -> None:
    """Make what was current before the step current again, where it is left in its own context.

    An abandoned stream is closed from another task, which never was in the step.
    """
    try:
        STEP.reset(tokens[0])
        AGENT.reset(tokens[1])
    except ValueError:
        return
