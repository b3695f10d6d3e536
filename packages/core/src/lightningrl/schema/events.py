"""Events: all that an attempt can append, once under each id."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Any

import msgspec

from lightningrl.schema.forks import Diverged, ReplayOf
from lightningrl.schema.ids import AttemptId, EventId, StepId
from lightningrl.schema.rollouts import Sampling

FINAL = "final"
"""The name of the reward that rewards the rollout as a whole."""


class StepKind(StrEnum):
    """What an agent did in one step."""

    LLM = "llm"
    TOOL = "tool"
    RETRIEVAL = "retrieval"
    HANDOFF = "handoff"
    GUARDRAIL = "guardrail"
    """A check of an agent's input or output, which may end the agent."""
    AGENT = "agent"


class Dialect(StrEnum):
    """The wire format in which an agent called the gateway."""

    CHAT = "chat"
    """OpenAI's chat completions."""
    RESPONSES = "responses"
    """OpenAI's Responses."""
    ANTHROPIC = "anthropic"
    """Anthropic's messages."""
    COMPLETIONS = "completions"
    """OpenAI's completions of a plain text."""


class CallStatus(StrEnum):
    """How a model call ended, as the gateway saw it."""

    DELIVERED = "delivered"
    FAILED = "failed"
    CANCELLED = "cancelled"
    """The client hung up before the answer was there."""


class EventBase(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What every event has.

    Events hold plain values and can't form cycles: the garbage collector needn't look at them (`gc=False`).
    """

    id: EventId
    """Chosen by the writer, unique within the attempt: appending it twice is appending it once."""
    attempt_id: AttemptId
    at: datetime
    """The writer's clock; of a call the moment when it ended (its start is `latency_ms` earlier). The
    order of events is the order of arrival at the store, not this."""


UNJUDGED = "could not be judged: "
"""How `Choice.wrong_format` begins where nobody can tell whether the answer is of the form."""


class Choice(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One sampled answer of a call."""

    index: int
    message: bytes
    """The assistant's message, JSON, in the form of chat completions whatever the dialect."""
    finish_reason: str | None
    token_ids: bytes
    """Sampled ids, little-endian int32, end-of-sequence included. Empty: the engine gave none."""
    logprobs: bytes
    """Log-prob of each id in `token_ids` when it was sampled, little-endian float32."""
    untrainable: str | None = None
    """Why these tokens must not be trained. `None`: they may be."""
    stop_text: str | None = None
    """The text of the request's that ended the answer: the tokens say it, the message does not. `None`: none did."""
    wrong_format: str | None = None
    """In what the answer is not of the form that was asked of it in words (`constrained: free`), or, after
    `UNJUDGED`, why that can't be told. `None`: it is, or none was asked so."""


class Rewrite(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """A change that the gateway made to a request before the engine saw it; see `conversation.rewriting`."""

    name: str
    """What was changed. A name's meaning never changes, so that old records stay readable."""
    by: Any = None
    """JSON: what the change depended on beside the request. `None`: nothing."""


TOOL_PARSER_ERROR = "tool parser: "
"""How `CallEvent.error` begins where the engine could not read a tool call of the answer."""


class CallEvent(EventBase, frozen=True, tag="call", kw_only=True, gc=False):
    """The wire record of one model call, written by the gateway alone."""

    step_id: StepId
    agent: str | None
    """The agent's name as the agent header said. `None`: nobody said."""
    within: tuple[str, ...] = ()
    """The agents around it, the outermost first, as that header said."""
    state: str | None = None
    """Key of the state in which the agent called, as it said (`lightningrl.state`). `None`: it said none."""
    policy: str
    """Alias of the policy that answered."""
    model: str
    """The model name that the agent asked for."""
    endpoint: str
    """URL of the engine that answered; empty where none was reached."""
    version_start: int
    """Policy version when the answer was begun."""
    version_end: int
    """Policy version when it was finished; by default always `version_start`."""
    dialect: Dialect = Dialect.CHAT
    """What `request` is written in; `lightningrl.conversation` reads every one of them."""
    request: bytes
    """JSON: the request as the agent sent it."""
    rewrites: tuple[Rewrite, ...] = ()
    """What was changed in it before the engine saw it, in order."""
    sampling: Sampling | None
    """What the answer was sampled with. `None`: the agent's own parameters (in `request`)."""
    prompt_ids: bytes
    """Prompt token ids, little-endian int32, as the engine rendered them."""
    choices: tuple[Choice, ...]
    """Empty where the call failed."""
    prompt_tokens: int
    completion_tokens: int
    latency_ms: float
    """From the request's arrival to its answer, time held by a weight sync included."""
    held_ms: float
    """The part of `latency_ms` spent waiting for a weight sync."""
    upstream_retries: int
    status: CallStatus
    http_status: int
    """What the agent was answered; 499 where it hung up."""
    error: str | None
    """Why there was no answer; of a delivered call what the engine's tool parser could not read, which
    begins with `TOOL_PARSER_ERROR`. `None`: nothing went wrong."""
    replay_of: ReplayOf | None = None
    """The call whose answer it was given again, whole, with the log-probs and versions of its sampling. `None`: this one
    was sampled, or failed."""
    diverged: Diverged | None = None
    """How its request differs from the recorded ones of the trunk that it should have been among. `None`: it does not."""


class StepStartEvent(EventBase, frozen=True, tag="step_start", kw_only=True, gc=False):
    """A step began."""

    step_id: StepId
    parent_id: StepId | None
    """The enclosing step. `None`: a root of the tree."""
    kind: StepKind
    name: str
    """Of the tool, the agent or the model."""
    agent: str | None
    """The agent that took the step."""
    inputs: Any = None
    """JSON: a tool's arguments, a retrieval's query. `None` for `llm` steps: the call has them."""
    tool_call_id: str | None = None
    """Joins a tool step to the model call that asked for it."""


class StepEndEvent(EventBase, frozen=True, tag="step_end", kw_only=True, gc=False):
    """A step ended. A step without this event was interrupted."""

    step_id: StepId
    output: Any = None
    """JSON: a tool's result. `None` for `llm` steps: the call has it."""
    error: str | None = None
    """The exception or the tool's own error text. `None`: it went well."""


class RewardEvent(EventBase, frozen=True, tag="reward", kw_only=True, gc=False):
    """A reward for a step, or for the rollout."""

    value: float
    """Finite."""
    step_id: StepId | None = None
    """`None`: rewards the rollout."""
    name: str = FINAL
    """`final` with `step_id=None` is *the* reward of the rollout."""
    source: str = "agent"
    """Who judged: `recipe`, `agent`, `judge:<name>`, `user`, ..."""
    revision: int = 0
    """Of the rewards with equal step and name, the highest revision counts."""


class LogTopic(StrEnum):
    """Log lines that more than people read."""

    OUTSIDE = "outside"
    """The agent called a model that is not of the run; the call was not recorded."""
    REFUSED = "refused"
    """A request of the attempt was refused before it was a call."""
    UNKNOWN_FIELD = "unknown_field"
    """A field of the attempt's requests that nobody knows was left out of what engines got."""
    HOSTED_TOOL = "hosted_tool"
    """A tool of the attempt's requests that the service would run was left out of what engines got."""
    REWARD_ERROR = "reward_error"
    """The reward function caught an error of its own."""


class LogEvent(EventBase, frozen=True, tag="log", kw_only=True, gc=False):
    """A line for people."""

    level: str
    message: str
    topic: LogTopic | None = None
    """What programs may look for. `None`: it is for people alone."""


Event = CallEvent | StepStartEvent | StepEndEvent | RewardEvent | LogEvent
"""Anything that an attempt can append."""

AFTER_FINISH = (RewardEvent, LogEvent)
"""Events that are still accepted when the attempt has ended."""
