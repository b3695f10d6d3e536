"""What the gateway counts, in Prometheus' text format at `GET /metrics`.

Invariant: every value is of this process since its start, or of this moment; labels are names that a
recipe or an operator chose, or some of the engines' error codes, never an id: their number stays small.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from prometheus_client import (
    CollectorRegistry,
    Counter,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
)
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

from lightningrl.gateway.health import Health
from lightningrl.gateway.observe import Recorded
from lightningrl.gateway.policies import Served
from lightningrl.schema import CallStatus

CONTENT_TYPE = CONTENT_TYPE_LATEST.encode()

_SECONDS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
"""Upper bounds of the latency buckets: from a tiny model's answer to a long one behind a weight sync."""
_POLICY = ("run", "policy")
_MOST_CODES = 100
"""Codes of refusals that are counted apart, since engines may make up more; the rest counts as `other`."""


class _OfPolicy(NamedTuple):
    """The counters of one policy: looking them up by labels would cost a call more than counting."""

    calls: dict[CallStatus, Counter]
    latency: Histogram
    prompt_tokens: Counter
    completion_tokens: Counter
    held: Counter
    queued: Counter
    retries: Counter
    untrainable: Counter
    replayed: Counter


class Metrics:
    """The gateway's counters; an `Observer`."""

    def __init__(self, policies: Iterable[Served], health: Health) -> None:
        """Count from zero; `policies` and `health` are looked at when somebody asks."""
        self._registry = _of_process()
        self._by_policy: dict[tuple[str, str], _OfPolicy] = {}
        self._codes: set[str] = set()
        self._calls = Counter(
            "lightningrl_gateway_calls",
            "Recorded model calls, by how they ended.",
            (*_POLICY, "status"),
            registry=self._registry,
        )
        self._tokens = Counter(
            "lightningrl_gateway_tokens",
            "Tokens of delivered calls.",
            (*_POLICY, "kind"),
            registry=self._registry,
        )
        self._untrainable = Counter(
            "lightningrl_gateway_untrainable_answers",
            "Answers whose tokens can't be trained; each call's record names the reason.",
            _POLICY,
            registry=self._registry,
        )
        self._retries = Counter(
            "lightningrl_gateway_upstream_retries",
            "How often calls were sent to an engine again.",
            _POLICY,
            registry=self._registry,
        )
        self._latency = Histogram(
            "lightningrl_gateway_call_seconds",
            "From a call's arrival to its record, time held by a weight sync included.",
            _POLICY,
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._held = Counter(
            "lightningrl_gateway_held_seconds",
            "Time that calls waited for weight syncs.",
            _POLICY,
            registry=self._registry,
        )
        self._refusals = _refusals(self._registry)
        self._queued = _queued_seconds(self._registry)
        self._replayed = _replayed_calls(self._registry)
        self._left_out = _unknown_fields(self._registry)
        self._registry.register(_Present(policies, health))

    def recorded(self, call: Recorded) -> None:
        """See `Observer.recorded`."""
        event = call.event
        of_policy = self._of(call.run, event.policy)
        if event.replay_of is not None:
            of_policy.replayed.inc()
            return  # no engine had to do with it
        of_policy.calls[event.status].inc()
        of_policy.latency.observe(event.latency_ms / 1e3)
        of_policy.prompt_tokens.inc(event.prompt_tokens)
        of_policy.completion_tokens.inc(event.completion_tokens)
        if event.held_ms:
            of_policy.held.inc(event.held_ms / 1e3)
        if call.queued_seconds:
            of_policy.queued.inc(call.queued_seconds)
        if event.upstream_retries:
            of_policy.retries.inc(event.upstream_retries)
        untrainable = sum(choice.untrainable is not None for choice in event.choices)
        if untrainable:
            of_policy.untrainable.inc(untrainable)

    def _of(self, run: str, policy: str) -> _OfPolicy:
        found = self._by_policy.get((run, policy))
        if found is None:
            labels = (run, policy)
            found = self._by_policy[labels] = _OfPolicy(
                calls={one: self._calls.labels(*labels, one.value) for one in CallStatus},
                latency=self._latency.labels(*labels),
                prompt_tokens=self._tokens.labels(*labels, "prompt"),
                completion_tokens=self._tokens.labels(*labels, "completion"),
                held=self._held.labels(*labels),
                queued=self._queued.labels(*labels),
                retries=self._retries.labels(*labels),
                untrainable=self._untrainable.labels(*labels),
                replayed=self._replayed.labels(*labels),
            )
        return found

    def refused(self, code: str) -> None:
        """A request was answered by an error; `code` is one of the gateway's or engine's."""
        if code not in self._codes:
            if len(self._codes) == _MOST_CODES:
                code = "other"
            else:
                self._codes.add(code)
        self._refusals.labels(code).inc()

    def left_out(self, count: int) -> None:
        """So many fields of a request were left out, since nobody knows them."""
        self._left_out.inc(count)

    def text(self) -> bytes:
        """All values, in Prometheus' text format."""
        return generate_latest(self._registry)


def _of_process() -> CollectorRegistry:
    """A registry with what is said of every process."""
    registry = CollectorRegistry()
    for collector in (ProcessCollector, PlatformCollector, GCCollector):
        collector(registry=registry)
    return registry


def _refusals(registry: CollectorRegistry) -> Counter:
    return Counter(
        "lightningrl_gateway_refusals",
        "Requests that were answered by an error of the gateway, by its code.",
        ("code",),
        registry=registry,
    )


def _queued_seconds(registry: CollectorRegistry) -> Counter:
    return Counter(
        "lightningrl_gateway_queued_seconds",
        "Time that calls waited for their turn, since an attempt had as many under way as it may.",
        _POLICY,
        registry=registry,
    )


def _replayed_calls(registry: CollectorRegistry) -> Counter:
    return Counter(
        "lightningrl_gateway_replayed_calls",
        "Calls of forks and retries that were answered from the record; nothing else counts them.",
        _POLICY,
        registry=registry,
    )


def _unknown_fields(registry: CollectorRegistry) -> Counter:
    return Counter(
        "lightningrl_gateway_unknown_fields",
        "Fields of requests that nobody knew and that were left out; each attempt's log names them.",
        registry=registry,
    )


class _Present(Collector):
    """The values of this moment."""

    def __init__(self, policies: Iterable[Served], health: Health) -> None:
        self._policies = policies
        self._health = health

    def collect(self) -> Iterator[Metric]:
        """Look at every policy."""
        running = GaugeMetricFamily(
            "lightningrl_gateway_calls_in_flight", "Calls that an engine works on.", labels=_POLICY
        )
        waiting = GaugeMetricFamily(
            "lightningrl_gateway_calls_held", "Calls that wait for a weight sync.", labels=_POLICY
        )
        version = GaugeMetricFamily(
            "lightningrl_gateway_policy_version", "The version that calls get.", labels=_POLICY
        )
        failures = GaugeMetricFamily(
            "lightningrl_gateway_endpoint_failures",
            "Failed calls and health checks of an engine since its last answer; 0 is healthy.",
            labels=(*_POLICY, "endpoint"),
        )
        up = GaugeMetricFamily(
            "lightningrl_gateway_endpoint_up",
            "1: the engine is in rotation; 0: calls go to others until a health check succeeds.",
            labels=(*_POLICY, "endpoint"),
        )
        for served in self._policies:
            policy = served.policy
            labels = (policy.run, policy.name)
            running.add_metric(labels, served.gate.in_flight)
            waiting.add_metric(labels, served.gate.waiting)
            version.add_metric(labels, policy.version)
            for endpoint in policy.endpoints:
                count = self._health.failures(endpoint.url)
                failures.add_metric((*labels, endpoint.url), count)
                up.add_metric((*labels, endpoint.url), float(self._health.is_up(endpoint.url)))
        yield from (running, waiting, version, failures, up)
