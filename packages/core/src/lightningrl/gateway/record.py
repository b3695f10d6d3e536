"""What is recorded of a call, and which of its tokens may be trained.

Invariant: token ids and log-probs are the engine's own, byte for byte; where they are missing, don't
match, or were sampled otherwise than the rollout says, the choice carries the reason in `untrainable`.
"""

from __future__ import annotations

from datetime import datetime, timedelta

import msgspec

from lightningrl.conversation.parts import why_unseen
from lightningrl.conversation.replaying import origin_of, replay_id
from lightningrl.conversation.rewriting import Rewritten
from lightningrl.gateway.dialects.arrays import no_logprob
from lightningrl.gateway.dialects.base import AgentRequest
from lightningrl.gateway.dialects.engine_reply import (
    EngineChoice,
    EngineReply,
    Tokens,
    Usage,
    tokens_of,
    usage_of,
)
from lightningrl.gateway.replays import SAMPLED, Replayed
from lightningrl.gateway.upstream import Sending
from lightningrl.schema import (
    TOOL_PARSER_ERROR,
    AttemptId,
    CallEvent,
    CallStatus,
    Choice,
    Dialect,
    EventId,
    Sampling,
    StepId,
)

_BYTES_PER_ID = 4


class Call:
    """One call on its way through the gateway: what is known from the start, and what is found out."""

    def __init__(
        self,
        *,
        event_id: EventId,
        attempt_id: AttemptId,
        step_id: StepId,
        agent: str | None,
        within: tuple[str, ...] = (),
        state: str | None,
        policy: str,
        dialect: Dialect,
        request: AgentRequest,
        rewritten: Rewritten,
        found: Replayed = SAMPLED,
        sampling: Sampling | None,
        traceparent: str | None = None,
        started_at: datetime,
        started: float,
    ) -> None:
        self.event_id = event_id
        self.attempt_id = attempt_id
        self.step_id = step_id
        self.agent = agent
        self.within = within
        self.state = state
        self.policy = policy
        self.dialect = dialect
        self.request = request
        self.engine = request.engine
        """What the engine is asked."""
        if rewritten.rewrites:
            self.engine = msgspec.structs.replace(request.engine, fields=rewritten.fields)
        self.rewrites = rewritten.rewrites
        self.demand = rewritten.demand
        self.found = found
        """What the record says of it."""
        self.sampling = sampling
        """What the answer is sampled with. `None`: the agent's own parameters."""
        self.traceparent = traceparent
        """The W3C trace header that the agent sent; not part of the record. `None`: none."""
        self.started_at = started_at
        self.started = started
        """Monotonic seconds."""
        self.sending = Sending()
        self.held_seconds = 0.0
        self.queued_seconds = 0.0
        """Time in which it waited for its turn among the attempt's calls."""
        self.has_turn = False
        self.version_start = 0
        self.version_end = 0

    def failed(self, status: CallStatus, http_status: int, error: str, now: float) -> CallEvent:
        """The record of a call that gave no answer; `now` is monotonic seconds."""
        return self._event(now, status=status, http_status=http_status, error=error)

    def delivered(self, reply: EngineReply, choices: tuple[Choice, ...], now: float) -> CallEvent:
        """The record of a call whose answer is about to be delivered.

        Raises:
            ValueError: the prompt's token ids are not what an engine gives.
        """
        prompt_ids = reply.prompt_ids()
        usage = usage_of(reply)
        sampled = sum(len(one.token_ids) for one in choices) // _BYTES_PER_ID
        return self._event(
            now,
            status=CallStatus.DELIVERED,
            http_status=200,
            error=parser_errors(reply),
            prompt_ids=prompt_ids,
            choices=choices,
            prompt_tokens=usage.prompt_tokens if usage else len(prompt_ids) // _BYTES_PER_ID,
            completion_tokens=usage.completion_tokens if usage else sampled,
        )

    def replayed(self, origin: CallEvent, now: float) -> CallEvent:
        """The record of a call that is given a recorded answer: a whole copy, as its agent asked this time.

        Its id is the attempt's sole one for that answer, so the store gives it to one step alone.
        """
        sampled = origin_of(origin)
        return msgspec.structs.replace(
            origin,
            id=replay_id(sampled),
            attempt_id=self.attempt_id,
            at=self.started_at + timedelta(seconds=now - self.started),
            step_id=self.step_id,
            agent=self.agent,
            within=self.within,
            state=self.state,
            model=self.request.model,
            dialect=self.dialect,
            request=self.request.body,
            latency_ms=(now - self.started) * 1e3,
            held_ms=0.0,
            upstream_retries=0,
            replay_of=sampled,
            diverged=None,
        )

    def _event(
        self,
        now: float,
        *,
        status: CallStatus,
        http_status: int,
        error: str | None,
        prompt_ids: bytes = b"",
        choices: tuple[Choice, ...] = (),
        prompt_tokens: int = 0,
        completion_tokens: int = 0,
    ) -> CallEvent:
        return CallEvent(
            id=self.event_id,
            attempt_id=self.attempt_id,
            at=self.started_at + timedelta(seconds=now - self.started),
            step_id=self.step_id,
            agent=self.agent,
            within=self.within,
            state=self.state,
            policy=self.policy,
            model=self.request.model,
            endpoint=self.sending.endpoint,
            version_start=self.version_start,
            version_end=self.version_end,
            dialect=self.dialect,
            request=self.request.body,
            rewrites=self.rewrites,
            sampling=self.sampling,
            prompt_ids=prompt_ids,
            choices=choices,
            prompt_tokens=prompt_tokens,
            completion_tokens=completion_tokens,
            latency_ms=(now - self.started) * 1e3,
            held_ms=self.held_seconds * 1e3,
            upstream_retries=self.sending.retries,
            status=status,
            http_status=http_status,
            error=error,
            diverged=self.found.diverged,
        )


def recorded_reply(call: CallEvent, created: int) -> EngineReply:
    """A recorded answer as the engine had given it, as far as agents see it; log-probs are not among it.

    Args:
        call: delivered.
        created: seconds since 1970.
    """
    counts = Usage(call.prompt_tokens, call.completion_tokens)
    total = call.prompt_tokens + call.completion_tokens
    return EngineReply(
        choices=[
            EngineChoice(
                index=one.index,
                message=msgspec.Raw(one.message),
                finish_reason=one.finish_reason,
                stop_reason=one.stop_text,
            )
            for one in call.choices
        ],
        created=created,
        usage=msgspec.Raw(
            msgspec.json.encode({**msgspec.structs.asdict(counts), "total_tokens": total})
        ),
    )


def choices_of(call: Call, reply: EngineReply) -> tuple[Choice, ...]:
    """The engine's answers with their tokens, each judged.

    Raises:
        ValueError: ids or log-probs are not what an engine gives.
    """
    return tuple(_choice(call, reply, one) for one in reply.choices)


def _choice(call: Call, reply: EngineReply, choice: EngineChoice) -> Choice:
    tokens = tokens_of(choice)
    return Choice(
        index=choice.index,
        message=bytes(choice.message),
        finish_reason=choice.finish_reason,
        token_ids=tokens.ids,
        logprobs=tokens.logprobs,
        untrainable=untrainable(call, reply, choice, tokens),
        stop_text=choice.stop_text,
        wrong_format=call.demand.fault(bytes(choice.message)) if call.demand else None,
    )


def untrainable(call: Call, reply: EngineReply, choice: EngineChoice, tokens: Tokens) -> str | None:
    """Why the tokens of `choice` must not be trained. `None`: they may be.

    An answer cut at `max_tokens`, or one that the engine's tool parser could not read, is trainable:
    its tokens are what the policy did.
    """
    if not tokens.ids:
        return "the engine gave no token ids"
    if len(tokens.ids) != len(tokens.logprobs):
        ids, logprobs = len(tokens.ids) // _BYTES_PER_ID, len(tokens.logprobs) // _BYTES_PER_ID
        return f"the engine gave {ids} token ids and {logprobs} log-probs"
    if strange := no_logprob(tokens.logprobs):
        return f"the engine gave {strange} for a token's log-prob"
    if bytes(reply.prompt_token_ids) in (b"null", b"[]"):
        return "the engine gave no prompt token ids"
    if choice.finish_reason == "abort":
        return "the engine broke off the answer"
    asked = call.engine
    if constraint := asked.constraint():
        return f"sampled under a grammar ({constraint})"
    if call.sampling is None and (own := asked.own_sampling()):
        return f"sampled otherwise ({own})"
    if unread := why_unseen(asked.fields):
        return unread
    strange = choice.versions() - {call.version_start}
    if strange:
        names = ", ".join(map(str, sorted(strange)))
        return f"the engine reported weight version {names}, not {call.version_start}"
    return None


def parser_errors(reply: EngineReply) -> str | None:
    """What the engine's tool parser could not read. `None`: it read all."""
    found = [one.tool_parser_error for one in reply.choices if one.tool_parser_error]
    return TOOL_PARSER_ERROR + "; ".join(found) if found else None
