"""The life of one model call: who, which policy, wait, sample, record, answer.

Invariants:
- The record of a call is committed before its answer is sent; what can't be recorded isn't answered.
- The commit checks that the attempt still runs, so what is cached here never decides what counts.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from urllib.parse import unquote

import msgspec

from lightningrl.clock import Clock
from lightningrl.errors import StaleAttempt, StoreUnavailable
from lightningrl.gateway.asgi import (
    EVENT_STREAM,
    JSON,
    Answer,
    ClientGone,
    Headers,
    Receive,
    Refusal,
    to_json,
)
from lightningrl.gateway.dialects.chat import (
    EngineReply,
    agent_reply,
    effective_sampling,
    engine_request,
    parse_reply,
    parse_request,
)
from lightningrl.gateway.dialects.sse import event_stream
from lightningrl.gateway.identity import AttemptContext, ended
from lightningrl.gateway.interrupt import UntilHangup
from lightningrl.gateway.limits import GatewayLimits
from lightningrl.gateway.policies import Policies, Served
from lightningrl.gateway.record import Call, choices_of
from lightningrl.gateway.sync import Drained, GateState
from lightningrl.gateway.upstream import Upstream, rank, refusal_of_engine
from lightningrl.schema import CallEvent, CallStatus, EventId, StepId, new_id
from lightningrl.store.base import Store

STEP_HEADER = b"x-lightningrl-step"
"""Id of the step that the call is; the join key to an adapter's events."""
AGENT_HEADER = b"x-lightningrl-agent"
"""Name of the agent that takes the step, percent-encoded UTF-8."""

_CHAT_PATH = "/chat/completions"
_LONGEST_NAME = 256
_CLIENT_CLOSED = 499
_TRACE_HEADERS = (b"traceparent", b"tracestate")


class Calls:
    """Answers chat completions."""

    def __init__(
        self,
        store: Store,
        clock: Clock,
        limits: GatewayLimits,
        *,
        policies: Policies,
        upstream: Upstream,
    ) -> None:
        self._store = store
        self._clock = clock
        self._limits = limits
        self._policies = policies
        self._upstream = upstream

    async def answer(
        self, context: AttemptContext, headers: Headers, body: bytes, receive: Receive
    ) -> Answer:
        """Sample, record and answer one call.

        Raises:
            Refusal: the request is wrong, or its engine failed it; the latter is recorded.
            ClientGone: the client hung up; recorded as cancelled.
        """
        request = parse_request(body)
        agent = _name(headers, AGENT_HEADER)
        served = await self._policies.resolve(context.rollout.run, request.model, agent)
        event_id = new_id("call")
        own_step_id = event_id.replace("call", "s")  # one reading of the system's randomness
        call = Call(
            event_id=EventId(event_id),
            attempt_id=context.id,
            step_id=StepId(_name(headers, STEP_HEADER) or own_step_id),
            agent=agent,
            policy=served.policy.name,
            request=request,
            sampling=effective_sampling(request, context.rollout.sampling),
            started_at=self._clock.now(),
            started=self._clock.monotonic(),
        )
        with self._slot(context):
            reply = await self._recorded(call, context, served, headers, receive)
        return _answer(call, reply)

    @contextmanager
    def _slot(self, context: AttemptContext) -> Generator[None]:
        limits = self._limits
        if limits.calls_per_attempt is not None and context.calls >= limits.calls_per_attempt:
            raise Refusal(
                429,
                "call_limit",
                f"attempt {context.id!r} has made the {limits.calls_per_attempt} model calls that one"
                " attempt may make (GatewayLimits.calls_per_attempt)",
            )
        if context.running >= limits.concurrent_calls_per_attempt:
            raise Refusal(
                429,
                "concurrency_limit",
                f"attempt {context.id!r} has {context.running} model calls under way, the most that"
                " it may (GatewayLimits.concurrent_calls_per_attempt)",
                retry_after=1,
            )
        context.calls += 1
        context.running += 1
        try:
            yield
        finally:
            context.running -= 1

    async def _recorded(
        self,
        call: Call,
        context: AttemptContext,
        served: Served,
        headers: Headers,
        receive: Receive,
    ) -> EngineReply:
        """The engine's answer, when the record of it is committed."""
        try:
            with UntilHangup(receive):
                reply = await self._sample(call, context, served, headers)
            event = self._delivered(call, reply)
        except ClientGone:
            gone = "the client hung up before it was answered"
            await self._commit(
                self._failed(call, CallStatus.CANCELLED, _CLIENT_CLOSED, gone), context
            )
            raise
        except Refusal as refusal:
            event = self._failed(call, CallStatus.FAILED, refusal.status, refusal.message)
            await self._commit(event, context)
            raise
        await self._commit(event, context)
        return reply

    async def _sample(
        self, call: Call, context: AttemptContext, served: Served, headers: Headers
    ) -> EngineReply:
        """Have the call answered, again after each drain that stopped it."""
        body = engine_request(call.request, call.policy, call.sampling)
        sent_headers = _engine_headers(call, headers)
        while True:
            if served.gate.state is not GateState.OPEN:
                await self._wait(call, served)
            policy = served.policy
            call.version_start = policy.version
            ranked = rank(policy.endpoints, context.rollout.id)
            try:
                with served.gate.flight():
                    status, answer = await self._upstream.post(
                        ranked, _CHAT_PATH, body, sent_headers, call.sending
                    )
            except Drained:
                continue
            finally:
                call.version_end = served.policy.version
            return _read(status, answer, call.sending.endpoint)

    async def _wait(self, call: Call, served: Served) -> None:
        since = self._clock.monotonic()
        try:
            await served.gate.pass_through(call.attempt_id)
        finally:
            call.held_seconds += self._clock.monotonic() - since

    def _delivered(self, call: Call, reply: EngineReply) -> CallEvent:
        try:
            return call.delivered(reply, choices_of(call, reply), self._clock.monotonic())
        except ValueError as error:
            raise _unreadable(call.sending.endpoint, error) from error

    def _failed(self, call: Call, status: CallStatus, http_status: int, error: str) -> CallEvent:
        return call.failed(status, http_status, error, self._clock.monotonic())

    async def _commit(self, event: CallEvent, context: AttemptContext) -> None:
        try:
            await self._store.append([event])
        except StaleAttempt as error:
            context.checked_at = float("-inf")
            raise ended(context) from error
        except StoreUnavailable as error:
            raise Refusal(
                503,
                "store_unavailable",
                f"the call could not be recorded, so it is not answered: {error}",
                retry_after=2,
            ) from error


def _answer(call: Call, reply: EngineReply) -> Answer:
    """The answer as the agent gets it. Its id is the step id, so rewards can name it by either."""
    request = call.request
    headers = ((b"x-request-id", call.event_id.encode()),)
    answer = agent_reply(request, reply, call.step_id)
    if request.streams:
        stream = event_stream(answer, include_usage=request.wants_usage)
        return Answer(200, stream, EVENT_STREAM, (*headers, (b"cache-control", b"no-cache")))
    return Answer(200, to_json(answer), JSON, headers)


def _read(status: int, answer: bytes, endpoint: str) -> EngineReply:
    if status != 200:
        raise refusal_of_engine(status, answer, endpoint)
    try:
        reply = parse_reply(answer)
    except msgspec.DecodeError as error:
        raise _unreadable(endpoint, error) from error
    if not reply.choices or any(bytes(one.message)[:1] != b"{" for one in reply.choices):
        raise _unreadable(endpoint, ValueError("it has no choices, or one without a message"))
    return reply


def _unreadable(endpoint: str, error: Exception) -> Refusal:
    return Refusal(
        502, "engine_failed", f"engine {endpoint!r} gave an answer that can't be read: {error}"
    )


def _engine_headers(call: Call, headers: Headers) -> dict[str, str]:
    """What the engine is told: nothing of the agent's but the trace; our id, for its log."""
    told = {"content-type": "application/json", "x-request-id": call.event_id}
    for name in _TRACE_HEADERS:
        if name in headers:
            told[name.decode()] = headers[name].decode("latin-1")
    return told


def _name(headers: Headers, header: bytes) -> str | None:
    """The name that a header of ours holds. `None`: it is missing or empty."""
    name = unquote(headers.get(header, b"").decode("latin-1"))
    if len(name) > _LONGEST_NAME or not (name.isprintable()):
        raise Refusal(
            400,
            "invalid_header",
            f"header {header.decode()} must be at most {_LONGEST_NAME} printable characters",
            param=header.decode(),
        )
    return name or None
