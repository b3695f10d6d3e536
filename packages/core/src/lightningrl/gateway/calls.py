"""The life of one model call: who, which policy, wait, sample, record, answer.

Invariants:
- The record of a call is committed before its answer is sent; what can't be recorded isn't answered.
- The commit checks that the attempt still runs, so what is cached here never decides what counts.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from functools import partial
from urllib.parse import unquote

import msgspec

from lightningrl.conversation.history import Asker
from lightningrl.conversation.malformed import Malformed
from lightningrl.conversation.replaying import Path
from lightningrl.conversation.rewriting import HOSTED_TOOLS, Rewritten
from lightningrl.errors import Conflict, LimitReached, StaleAttempt, StoreUnavailable
from lightningrl.gateway.asgi import (
    EVENT_STREAM,
    JSON,
    Answer,
    ClientGone,
    Headers,
    Receive,
    Refusal,
)
from lightningrl.gateway.dialects.base import AgentRequest, Spoken, Written
from lightningrl.gateway.dialects.engine_reply import EngineReply, with_call_ids
from lightningrl.gateway.dialects.reading import refusal_of, without_halves
from lightningrl.gateway.identity import AttemptContext, ended
from lightningrl.gateway.interrupt import UntilHangup
from lightningrl.gateway.limits import GatewayLimits
from lightningrl.gateway.observe import Observer, Recorded
from lightningrl.gateway.policies import Policies, Served
from lightningrl.gateway.recollection import Recollection
from lightningrl.gateway.record import Call, choices_of, recorded_reply
from lightningrl.gateway.replays import Replayed, Replays
from lightningrl.gateway.speaking import Speaker
from lightningrl.gateway.sync import Drained, GateState
from lightningrl.gateway.unknown_fields import UnknownFields
from lightningrl.gateway.upstream import Upstream, rank, refusal_of_engine
from lightningrl.machine.clock import Clock
from lightningrl.schema import CallEvent, CallStatus, Diverged, EventId, StepId, new_id
from lightningrl.store.base import Store

STEP_HEADER = b"x-lightningrl-step"
"""Id of the step that the call is; the join key to an adapter's events."""
AGENT_HEADER = b"x-lightningrl-agent"
"""The agents around the step, innermost last, each percent-encoded UTF-8, with slashes between them."""
STATE_HEADER = b"x-lightningrl-state"
"""Key of the state in which the call is made, percent-encoded UTF-8."""

_LONGEST_NAME = 256
_MOST_AGENTS = 64
_CLIENT_CLOSED = 499
_TRACEPARENT = b"traceparent"
_TRACE_HEADERS = (_TRACEPARENT, b"tracestate")


class Calls:
    """Answers model calls, in whatever dialect."""

    def __init__(
        self,
        store: Store,
        clock: Clock,
        limits: GatewayLimits,
        *,
        policies: Policies,
        upstream: Upstream,
        unknown_fields: UnknownFields,
        observers: Sequence[Observer] = (),
    ) -> None:
        self._store = store
        self._clock = clock
        self._limits = limits
        self._policies = policies
        self._upstream = upstream
        self._unknown_fields = unknown_fields
        self._observers = observers
        self._shared_limits = limits.shared
        self.recollection = Recollection(store)
        """What attempts were answered so far."""
        self.replays = Replays(store, self.recollection, policies)
        """What attempts are answered from the record of others."""

    async def answer(
        self,
        spoken: Spoken,
        context: AttemptContext,
        headers: Headers,
        body: bytes,
        receive: Receive,
        speaker: Speaker,
    ) -> Answer:
        """Sample, record and answer one call.

        Raises:
            Refusal: the request is wrong, or its engine failed it; the latter is recorded.
            ClientGone: the client hung up; recorded as cancelled.
        """
        request = await spoken.read(without_halves(body), lambda: self.recollection.of(context.id))
        agent, within = agent_in(headers)
        served = await self._policies.resolve(context.rollout.run, request.model, agent, within)
        if request.unknown:
            await self._unknown_fields.judge(spoken, request, served.policy, context)
        event_id = new_id("call")
        own_step_id = event_id.replace("call", "s")  # one reading of the system's randomness
        step_id = StepId(name_in(headers, STEP_HEADER) or own_step_id)
        asker = Asker(served.policy.name, within, agent)
        while True:
            async with self.replays.answering(
                context, Path(within, agent), request, spoken.dialect, step_id
            ) as found:
                rewritten = await self._rewritten(served, context, asker, request, spoken, found)
                call = Call(
                    event_id=EventId(event_id),
                    attempt_id=context.id,
                    step_id=step_id,
                    agent=agent,
                    within=within,
                    state=name_in(headers, STATE_HEADER),
                    policy=served.policy.name,
                    dialect=spoken.dialect,
                    request=request,
                    rewritten=rewritten,
                    found=found,
                    sampling=request.engine.effective_sampling(context.rollout.sampling),
                    traceparent=_text(headers, _TRACEPARENT),
                    started_at=self._clock.now(),
                    started=self._clock.monotonic(),
                )
                try:
                    return await self._in_slot(
                        spoken, call, context, served, headers, receive, speaker
                    )
                except Conflict:
                    continue  # another gateway gave the recorded answer to another step meanwhile

    async def _in_slot(
        self,
        spoken: Spoken,
        call: Call,
        context: AttemptContext,
        served: Served,
        headers: Headers,
        receive: Receive,
        speaker: Speaker,
    ) -> Answer:
        with self._slot(context):
            if call.request.streams:
                told = partial(spoken.waiting, call.request.model, call.step_id)
                speaker.expect(call.event_id, told, spoken.error_event)
            try:
                return await self._recorded(call, context, served, headers, receive)
            finally:
                if call.has_turn:
                    context.turns.release()

    async def _rewritten(
        self,
        served: Served,
        context: AttemptContext,
        asker: Asker,
        request: AgentRequest,
        spoken: Spoken,
        found: Replayed,
    ) -> Rewritten:
        asked, held, thoughts = request.engine.fields, None, None
        if found.call is not None or found.refused:
            return Rewritten(asked, ())  # no engine sees it
        if served.rewriter.remembers(asked):
            recorded = await self.recollection.of(context.id)
            held = recorded.held.get(asker)
            thoughts = recorded.thoughts.get(asker)
        try:
            rewritten = served.rewriter.rewrite(asked, spoken.dialect, held, thoughts)
        except Malformed as error:
            raise refusal_of(error) from error
        if rewritten.rewrites and rewritten.rewrites[0].name == HOSTED_TOOLS:
            await self._unknown_fields.tell_hosted(spoken, rewritten.rewrites[0].by, context)
        return rewritten

    @contextmanager
    def _slot(self, context: AttemptContext) -> Generator[None]:
        """A place for one call within the attempt's limits, perhaps one in the queue."""
        limits = self._limits
        if context.exhausted is not None:
            raise _exhausted(context.exhausted)
        if _reached(context.calls, limits.calls_per_attempt):
            raise _limit("call_limit", context, f"made {context.calls} model calls", "calls")
        if _reached(context.tokens, limits.tokens_per_attempt):
            raise _limit("token_limit", context, f"used {context.tokens} tokens", "tokens")
        most = limits.concurrent_calls_per_attempt + limits.queued_calls_per_attempt
        if context.running >= most:
            told = f"{context.running} model calls under way or waiting for their turn"
            raise _limit("concurrency_limit", context, told, "queued_calls", retry_after=1.0)
        context.calls += 1
        context.running += 1
        try:
            yield
        except Conflict:
            context.calls -= 1  # it comes again
            raise
        finally:
            context.running -= 1

    async def _recorded(
        self,
        call: Call,
        context: AttemptContext,
        served: Served,
        headers: Headers,
        receive: Receive,
    ) -> Answer:
        """The answer as the agent gets it, when the record of it is committed."""
        try:
            with UntilHangup(receive):
                await self._turn(call, context)
                reply = await self._reply(call, context, served, headers)
            event, written = self._delivered(call, reply)
        except ClientGone:
            gone = "the client hung up before it was answered"
            event = self._failed(call, CallStatus.CANCELLED, _CLIENT_CLOSED, gone)
            await self._commit(event, call, context)
            raise
        except Refusal as refusal:
            event = self._failed(call, CallStatus.FAILED, refusal.status, refusal.message)
            await self._commit(event, call, context)
            refusal.recorded = True
            raise
        await self._commit(event, call, context)
        context.tokens += event.prompt_tokens + event.completion_tokens
        return _answer(call, written)

    async def _turn(self, call: Call, context: AttemptContext) -> None:
        """Wait until the attempt has fewer calls under way than it may."""
        if context.turns.locked():
            since = self._clock.monotonic()
            try:
                await context.turns.acquire()
            finally:
                call.queued_seconds = self._clock.monotonic() - since
        else:
            await context.turns.acquire()  # does not wait
        call.has_turn = True

    async def _reply(
        self, call: Call, context: AttemptContext, served: Served, headers: Headers
    ) -> EngineReply:
        """The answer: of the record, else of the engine."""
        found = call.found
        if found.call is not None:
            return recorded_reply(found.call, int(self._clock.now().timestamp()))
        if found.refused and found.diverged is not None:
            raise _diverged(found.diverged)
        return await self._sample(call, context, served, headers)

    async def _sample(
        self, call: Call, context: AttemptContext, served: Served, headers: Headers
    ) -> EngineReply:
        """Have the call answered, again after each drain that stopped it.

        An engine that refuses a limit of tokens which the context has no room for is asked once more without one:
        then the room that is left is the limit.
        """
        asked = call.engine
        limit = call.sampling.max_tokens if call.sampling is not None else asked.max_tokens
        limited = limit is not None
        body = asked.encoded(call.policy, call.sampling)
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
                        ranked, asked.path, body, sent_headers, call.sending
                    )
            except Drained:
                continue
            finally:
                call.version_end = served.policy.version
            if status == 400 and limited and asked.is_beyond_context(answer):
                limited = False
                body = asked.encoded(call.policy, call.sampling, limited=False)
                continue
            return _read(call, status, answer)

    async def _wait(self, call: Call, served: Served) -> None:
        since = self._clock.monotonic()
        try:
            await served.gate.pass_through(call.attempt_id)
        finally:
            call.held_seconds += self._clock.monotonic() - since

    def _delivered(self, call: Call, reply: EngineReply) -> tuple[CallEvent, Written]:
        """The record, and the answer. Its id follows from the step's, so rewards can name it by either."""
        try:
            now, origin = self._clock.monotonic(), call.found.call
            if origin is not None:
                event = call.replayed(origin, now)
            else:
                event = call.delivered(reply, choices_of(call, reply), now)
            return event, call.request.write(reply, call.step_id)
        except (ValueError, RecursionError) as error:
            raise _unreadable(call.sending.endpoint, error) from error

    def _failed(self, call: Call, status: CallStatus, http_status: int, error: str) -> CallEvent:
        return call.failed(status, http_status, error, self._clock.monotonic())

    async def _commit(self, event: CallEvent, call: Call, context: AttemptContext) -> None:
        try:
            await self._store.append([event], limits=self._shared_limits)
        except StaleAttempt as error:
            context.checked_at = float("-inf")
            raise ended(context) from error
        except LimitReached as error:
            context.exhausted = str(error)
            raise _exhausted(context.exhausted) from error
        except StoreUnavailable as error:
            raise Refusal(
                503,
                "store_unavailable",
                f"the call could not be recorded, so it is not answered: {error}",
                retry_after=2,
            ) from error
        self.recollection.note(event)
        if self._observers:
            rollout = context.rollout
            recorded = Recorded(
                event, rollout.run, rollout.id, call.traceparent, call.queued_seconds
            )
            for observer in self._observers:
                observer.recorded(recorded)


def _reached(count: int, limit: int | None) -> bool:
    return limit is not None and count >= limit


def _limit(
    code: str, context: AttemptContext, told: str, limit: str, *, retry_after: float | None = None
) -> Refusal:
    return Refusal(
        429,
        code,
        f"attempt {context.id!r} has {told}, all that one attempt may"
        f" (LIGHTNINGRL_GATEWAY_{limit.upper()}_PER_ATTEMPT at the server)",
        retry_after=retry_after,
    )


def _exhausted(told: str) -> Refusal:
    """The refusal of a call by an attempt whose calls at all gateways have reached a limit."""
    return Refusal(
        429,
        "call_limit",
        f"{told} (LIGHTNINGRL_GATEWAY_CALLS_PER_ATTEMPT and _TOKENS_PER_ATTEMPT at the server)",
    )


def _diverged(diverged: Diverged) -> Refusal:
    return Refusal(
        400,
        "fork_diverged",
        f"this request is not the one that was recorded, so it is not answered from the record: {diverged.difference}"
        " (fork.on_divergence: sample would have the policy answer it)",
    )


def _answer(call: Call, written: Written) -> Answer:
    headers = ((b"x-request-id", call.event_id.encode()),)
    if written.streams:
        return Answer(200, written.body, EVENT_STREAM, (*headers, (b"cache-control", b"no-cache")))
    return Answer(200, written.body, JSON, headers)


def _read(call: Call, status: int, answer: bytes) -> EngineReply:
    endpoint = call.sending.endpoint
    if status != 200:
        raise refusal_of_engine(status, answer, endpoint)
    try:
        reply = with_call_ids(call.engine.parse(answer), call.event_id)
    except (msgspec.DecodeError, RecursionError) as error:
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
        value = _text(headers, name)
        if value is not None:
            told[name.decode()] = value
    return told


def _text(headers: Headers, name: bytes) -> str | None:
    """A header's value. `None`: it was not sent."""
    value = headers.get(name)
    return None if value is None else value.decode("latin-1")


def agent_in(headers: Headers) -> tuple[str | None, tuple[str, ...]]:
    """The agent that takes the step, `None` if nobody said, and the agents around it, the outermost first."""
    said = headers.get(AGENT_HEADER, b"").split(b"/")
    if len(said) > _MOST_AGENTS:
        raise Refusal(
            400,
            "invalid_header",
            f"header {AGENT_HEADER.decode()} must name at most {_MOST_AGENTS} agents",
            param=AGENT_HEADER.decode(),
        )
    names = [_name(one, AGENT_HEADER) for one in said if one]
    return (names[-1], tuple(names[:-1])) if names else (None, ())


def name_in(headers: Headers, header: bytes) -> str | None:
    """The name that a header of ours holds. `None`: it is missing or empty."""
    return _name(headers.get(header, b""), header) or None


def _name(said: bytes, header: bytes) -> str:
    name = unquote(said.decode("latin-1"))
    if len(name) > _LONGEST_NAME or not (name.isprintable()):
        raise Refusal(
            400,
            "invalid_header",
            f"header {header.decode()} must be at most {_LONGEST_NAME} printable characters",
            param=header.decode(),
        )
    return name
