"""Recorded calls as OpenTelemetry spans, by the conventions for generative AI (`gen_ai.*`).

An extra: `lightningrl[otel]`. Where spans go is OpenTelemetry's own business
(`OTEL_EXPORTER_OTLP_ENDPOINT`, `OTEL_SERVICE_NAME`, ...). Spans are a view of the record for people and
dashboards; nothing is trained from them.

Invariant: no message and no token leaves the gateway this way, only names, counts and times.

Attributes: https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-spans/
"""

from __future__ import annotations

from datetime import timedelta

from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.util.types import AttributeValue

from lightningrl.gateway.observe import Recorded
from lightningrl.schema import CallEvent, CallStatus

_NANOSECONDS = 10**9


class Spans:
    """An `Observer` that makes a span of each recorded call."""

    def __init__(self, exporter: SpanExporter) -> None:
        """Send spans through `exporter`, in batches and from a thread of its own."""
        self._provider = TracerProvider()
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("lightningrl.gateway")
        self._propagator = TraceContextTextMapPropagator()

    def recorded(self, call: Recorded) -> None:
        """See `Observer.recorded`. A span has the agent's own span as parent, if it sent one."""
        event = call.event
        parent = None
        if call.traceparent is not None:
            parent = self._propagator.extract({"traceparent": call.traceparent})
        began = event.at - timedelta(milliseconds=event.latency_ms)
        span = self._tracer.start_span(
            f"chat {event.model}",
            context=parent,
            kind=trace.SpanKind.SERVER,
            attributes=_attributes(call),
            start_time=int(began.timestamp() * _NANOSECONDS),
        )
        if event.status is not CallStatus.DELIVERED:
            # Without a description: an engine's error may quote the request. The record has it.
            span.set_status(trace.StatusCode.ERROR)
        span.end(int(event.at.timestamp() * _NANOSECONDS))

    def flush(self) -> None:
        """Send now what waits."""
        self._provider.force_flush()

    def close(self) -> None:
        """Send what waits."""
        self._provider.shutdown()


def otlp_spans() -> Spans:
    """Spans that go where OpenTelemetry's own variables say, by OTLP over HTTP."""
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    return Spans(OTLPSpanExporter())


def _attributes(call: Recorded) -> dict[str, AttributeValue]:
    event = call.event
    found: dict[str, AttributeValue | None] = {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "lightningrl",
        "gen_ai.request.model": event.model,
        "gen_ai.response.model": event.policy,
        "gen_ai.response.id": event.id,
        "gen_ai.response.finish_reasons": [one.finish_reason or "none" for one in event.choices],
        "gen_ai.usage.input_tokens": event.prompt_tokens,
        "gen_ai.usage.output_tokens": event.completion_tokens,
        "gen_ai.agent.name": event.agent,
        "error.type": _error_type(event),
        "lightningrl.run": call.run,
        "lightningrl.rollout": call.rollout_id,
        "lightningrl.attempt": event.attempt_id,
        "lightningrl.step": event.step_id,
        "lightningrl.policy_version": event.version_end,
        "lightningrl.held_ms": event.held_ms,
        "lightningrl.upstream_retries": event.upstream_retries,
    }
    if event.sampling is not None:
        found["gen_ai.request.temperature"] = event.sampling.temperature
        found["gen_ai.request.top_p"] = event.sampling.top_p
        found["gen_ai.request.max_tokens"] = event.sampling.max_tokens
    return {name: value for name, value in found.items() if value is not None}


def _error_type(event: CallEvent) -> str | None:
    return None if event.status is CallStatus.DELIVERED else str(event.http_status)
