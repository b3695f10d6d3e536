"""The records that every part of LightningRL shares, and the two state tables.

Invariants:
- Everything that an attempt produces is an append-only list of `Event`s whose ids the writer chose,
  so that appending an event twice is the same as appending it once.
- A rollout or attempt moves only along `ROLLOUT_MOVES` / `ATTEMPT_MOVES` (the same tables stand in
  `store/sql/schema.sql`, where the database enforces them).
- Token ids travel as little-endian int32 bytes and log-probs as little-endian float32 bytes, exactly
  as the engine gave them; nothing here tokenises.
"""

from __future__ import annotations

import hashlib
import uuid
from datetime import datetime
from enum import StrEnum
from typing import Any, NewType

import msgspec

RolloutId = NewType("RolloutId", str)
GroupId = NewType("GroupId", str)
AttemptId = NewType("AttemptId", str)
StepId = NewType("StepId", str)
EventId = NewType("EventId", str)

FINAL = "final"
"""The name of the reward that rewards the rollout as a whole."""


class Mode(StrEnum):
    """What a rollout is for. Only `TRAIN` rollouts are ever trained on."""

    TRAIN = "train"
    VAL = "val"
    TEST = "test"
    LIVE = "live"


class RolloutState(StrEnum):
    """Where a rollout stands."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


class AttemptState(StrEnum):
    """Where one try at a rollout stands."""

    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    TIMED_OUT = "timed_out"
    LOST = "lost"


ROLLOUT_MOVES: dict[RolloutState, frozenset[RolloutState]] = {
    RolloutState.QUEUED: frozenset({RolloutState.RUNNING, RolloutState.CANCELLED}),
    RolloutState.RUNNING: frozenset(
        {
            RolloutState.QUEUED,  # its attempt was lost or failed, and another one is allowed
            RolloutState.SUCCEEDED,
            RolloutState.FAILED,
            RolloutState.CANCELLED,
        }
    ),
    RolloutState.SUCCEEDED: frozenset(),
    RolloutState.FAILED: frozenset(),
    RolloutState.CANCELLED: frozenset(),
}
"""State -> states that a rollout may move to next."""

ATTEMPT_MOVES: dict[AttemptState, frozenset[AttemptState]] = {
    AttemptState.RUNNING: frozenset(
        {AttemptState.SUCCEEDED, AttemptState.FAILED, AttemptState.TIMED_OUT, AttemptState.LOST}
    ),
    AttemptState.SUCCEEDED: frozenset(),
    AttemptState.FAILED: frozenset(),
    AttemptState.TIMED_OUT: frozenset(),
    AttemptState.LOST: frozenset(),
}
"""State -> states that an attempt may move to next."""

TERMINAL: frozenset[RolloutState] = frozenset(
    state for state, moves in ROLLOUT_MOVES.items() if not moves
)
"""States that a rollout never leaves."""


class FailureKind(StrEnum):
    """Why an attempt did not succeed; decides whether the rollout is tried again."""

    AGENT = "agent"
    """The agent raised, or broke its contract (two rewards, NaN, no model call)."""
    NO_REWARD = "no_reward"
    """The agent did its work and neither it nor the recipe's function gave a reward."""
    TIMEOUT = "timeout"
    """The attempt ran longer than its rollout allows."""
    LOST = "lost"
    """The worker stopped renewing its lease."""
    INFRASTRUCTURE = "infrastructure"
    """The gateway, engine or store failed under the agent; the agent is not to blame."""
    CANCELLED = "cancelled"
    """Somebody cancelled the rollout."""


INFRASTRUCTURE_FAILURES: frozenset[FailureKind] = frozenset(
    {FailureKind.LOST, FailureKind.INFRASTRUCTURE}
)
"""Failures that count against `RetryPolicy.max_infrastructure_failures`, not `max_attempts`."""


AGENT_FAILURES: frozenset[FailureKind] = frozenset({FailureKind.AGENT, FailureKind.NO_REWARD})
"""Failures that `RetryPolicy.retry_agent_errors` decides about."""


class RetryPolicy(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How often a rollout is tried."""

    max_attempts: int = 2
    """Attempts that may end by `TIMEOUT` (and by the agent, if that is retried) before it fails."""
    retry_agent_errors: bool = False
    """Whether an exception or a missing reward of the agent itself is worth another attempt."""
    max_infrastructure_failures: int = 5
    """Attempts that may end by `LOST` or `INFRASTRUCTURE` before it fails."""

    def again(self, kind: FailureKind, failures: list[FailureKind]) -> bool:
        """Whether to try again after a failure of `kind`; `failures` are all so far, it included."""
        if kind is FailureKind.CANCELLED:
            return False
        if kind in INFRASTRUCTURE_FAILURES:
            spent = sum(one in INFRASTRUCTURE_FAILURES for one in failures)
            return spent <= self.max_infrastructure_failures
        if kind in AGENT_FAILURES and not self.retry_agent_errors:
            return False
        return sum(one not in INFRASTRUCTURE_FAILURES for one in failures) < self.max_attempts


class Sampling(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How the policy samples in one rollout; replaces whatever the agent asked for."""

    temperature: float = 1.0
    """0 is greedy."""
    top_p: float = 1.0
    top_k: int = -1
    """-1 is off."""
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None
    """`None`: the engine's own randomness."""
    max_tokens: int | None = None
    """Upper limit on the tokens of one answer; the agent may ask for less. `None`: no limit."""


class NewRollout(msgspec.Struct, frozen=True):
    """A rollout as it is enqueued. Its `id` is the caller's: enqueueing it again finds it."""

    id: RolloutId
    run: str
    mode: Mode
    iteration: int
    """The iteration whose update (train) or score (val, test) it belongs to; 0 for live."""
    task_id: str
    group_id: GroupId
    member: int
    """Index within the group, 0-based."""
    task: dict[str, Any]
    """One input row, as JSON."""
    variant: str = ""
    """Tells apart rollouts that differ in nothing else: validation has `greedy` and `sampled`."""
    sampling: Sampling | None = None
    """`None`: the agent's own sampling parameters stand."""
    timeout_seconds: float = 600.0
    """Longest time that one attempt may take; time held by a weight sync does not count."""
    retry: RetryPolicy = RetryPolicy()


class Rollout(msgspec.Struct, frozen=True):
    """One execution of an agent on one task."""

    spec: NewRollout
    state: RolloutState
    attempts: int
    """Attempts started so far."""
    reward: float | None
    """The final reward of the highest revision. `None`: not rewarded (yet)."""
    created_at: datetime
    ended_at: datetime | None

    @property
    def id(self) -> RolloutId:
        """The rollout's id."""
        return self.spec.id


class Failure(msgspec.Struct, frozen=True):
    """Why an attempt ended without success."""

    kind: FailureKind
    message: str
    """For people: the exception and where it came from."""


class Attempt(msgspec.Struct, frozen=True):
    """One try at a rollout, by one worker, under a lease."""

    id: AttemptId
    rollout_id: RolloutId
    number: int
    """1 for the first."""
    state: AttemptState
    worker: str
    lease_expires_at: datetime
    started_at: datetime
    ended_at: datetime | None
    failure: Failure | None
    output: Any
    """What the agent returned, as JSON. `None` also where it returned nothing."""


class Claim(msgspec.Struct, frozen=True):
    """A rollout handed to a worker."""

    rollout: Rollout
    attempt: Attempt
    key: str
    """The attempt key: lets the agent call models at the gateway and nothing else."""


class StepKind(StrEnum):
    """What an agent did in one step."""

    LLM = "llm"
    TOOL = "tool"
    RETRIEVAL = "retrieval"
    HANDOFF = "handoff"
    AGENT = "agent"


class CallStatus(StrEnum):
    """How a model call ended, as the gateway saw it."""

    DELIVERED = "delivered"
    FAILED = "failed"
    CANCELLED = "cancelled"
    """The client hung up before the answer was there."""


class EventBase(msgspec.Struct, frozen=True, kw_only=True):
    """What every event has."""

    id: EventId
    """Chosen by the writer, unique within the attempt: appending it twice is appending it once."""
    attempt_id: AttemptId
    at: datetime
    """The writer's clock; of a call the moment when it ended (its start is `latency_ms` earlier). The
    order of events is the order of arrival at the store, not this."""


class Choice(msgspec.Struct, frozen=True, kw_only=True):
    """One sampled answer of a call."""

    index: int
    message: bytes
    """The assistant's message, JSON, as the agent got it."""
    finish_reason: str | None
    token_ids: bytes
    """Sampled ids, little-endian int32, end-of-sequence included. Empty: the engine gave none."""
    logprobs: bytes
    """Log-prob of each id in `token_ids` when it was sampled, little-endian float32."""
    untrainable: str | None = None
    """Why these tokens must not be trained. `None`: they may be."""


TOOL_PARSER_ERROR = "tool parser: "
"""How `CallEvent.error` begins where the engine could not read a tool call of the answer."""


class CallEvent(EventBase, frozen=True, tag="call", kw_only=True):
    """The wire record of one model call, written by the gateway alone."""

    step_id: StepId
    agent: str | None
    """The agent's name as the step header said. `None`: nobody said."""
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
    request: bytes
    """JSON: the request's `messages`, `tools` and other fields as the agent sent them."""
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


class StepStartEvent(EventBase, frozen=True, tag="step_start", kw_only=True):
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


class StepEndEvent(EventBase, frozen=True, tag="step_end", kw_only=True):
    """A step ended. A step without this event was interrupted."""

    step_id: StepId
    output: Any = None
    """JSON: a tool's result. `None` for `llm` steps: the call has it."""
    error: str | None = None
    """The exception or the tool's own error text. `None`: it went well."""


class RewardEvent(EventBase, frozen=True, tag="reward", kw_only=True):
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


class LogEvent(EventBase, frozen=True, tag="log", kw_only=True):
    """A line for people."""

    level: str
    message: str
    topic: LogTopic | None = None
    """What programs may look for. `None`: it is for people alone."""


Event = CallEvent | StepStartEvent | StepEndEvent | RewardEvent | LogEvent
"""Anything that an attempt can append."""

AFTER_FINISH = (RewardEvent, LogEvent)
"""Events that are still accepted when the attempt has ended."""


class Endpoint(msgspec.Struct, frozen=True):
    """One engine that serves a policy."""

    url: str
    """Base URL up to and including `/v1`."""
    key: str | None = None
    """Sent as a bearer token."""


class Policy(msgspec.Struct, frozen=True):
    """A model under an alias: what agents call, what training changes."""

    name: str
    """The alias, and a model name that agents may use."""
    run: str
    version: int
    """+1 at every weight sync; a number is never used for two sets of weights."""
    endpoints: tuple[Endpoint, ...]
    trainable: bool = True
    replaces: tuple[str, ...] = ()
    """Model names of the agent that this policy answers for."""
    agents: tuple[str, ...] = ()
    """Agent names that this policy answers for."""
    held_until: datetime | None = None
    """New calls wait while this instant is in the future. `None`: calls pass."""


class Worker(msgspec.Struct, frozen=True):
    """A runner process, as the store knows it."""

    name: str
    run: str | None
    seen_at: datetime
    running: int
    """Attempts that it holds now."""


class TakenRollout(msgspec.Struct, frozen=True):
    """A rollout that the ledger gave to an iteration, with the attempt that counts."""

    rollout: Rollout
    attempt: Attempt
    reward: float
    """The final reward of the revision that was highest when it was taken."""


class TakenGroup(msgspec.Struct, frozen=True):
    """The succeeded members of one complete group, in member order."""

    group_id: GroupId
    rollouts: tuple[TakenRollout, ...]


class Progress(msgspec.Struct, frozen=True):
    """How far the rollouts of one (run, mode, iteration) are."""

    queued: int = 0
    running: int = 0
    succeeded: int = 0
    failed: int = 0
    cancelled: int = 0
    reward_sum: float = 0.0
    rewarded: int = 0
    """Succeeded rollouts that have a final reward; `reward_sum` is theirs."""

    @property
    def ended(self) -> int:
        """Rollouts in a terminal state."""
        return self.succeeded + self.failed + self.cancelled

    @property
    def total(self) -> int:
        """All rollouts."""
        return self.ended + self.queued + self.running

    @property
    def mean_reward(self) -> float | None:
        """Mean final reward. `None` where no rollout has one."""
        return self.reward_sum / self.rewarded if self.rewarded else None


def group_id(run: str, mode: Mode, iteration: int, task_id: str, variant: str = "") -> GroupId:
    """The id of the group that compares the rollouts of one task in one iteration.

    `variant` tells apart groups that differ in nothing else (greedy and sampled validation).
    """
    text = "\x1f".join((run, mode.value, str(iteration), task_id, variant))
    return GroupId("g-" + hashlib.blake2b(text.encode(), digest_size=10).hexdigest())


def rollout_id(group: GroupId, member: int) -> RolloutId:
    """The id of member `member` of `group`: the same for every start of the same run."""
    return RolloutId(f"r-{group[2:]}-{member}")


def new_id(prefix: str) -> str:
    """A fresh random id with a readable prefix."""
    return f"{prefix}-{uuid.uuid4().hex}"
