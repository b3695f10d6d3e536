"""Forks: rollouts that are answered from another attempt's record before their policy samples."""

from __future__ import annotations

from enum import StrEnum
from typing import Any

import msgspec

from lightningrl.schema.ids import AttemptId, EventId, StepId

SAID = "said by a person"
"""Why the answer that a fork was given in the place of a sampled one is not trained."""

BRANCH = "fork"
"""`NewRollout.variant` of a fork, which keeps it apart from the rollouts that are no fork."""

REPLAYED = "replayed: trained in "
"""How the reason begins why an answer of another rollout is not trained; that rollout's id follows."""


def reason_class(untrainable: str) -> str:
    """The reason why a call is not trained as it is counted: without the id of a replayed call's rollout."""
    return f"{REPLAYED}its parent" if untrainable.startswith(REPLAYED) else untrainable


class OnDivergence(StrEnum):
    """What becomes of a request that the trunk does not have."""

    FAIL = "fail"
    """It is refused, and so is every later one of the attempt."""
    SAMPLE = "sample"
    """The policy answers it."""


class Fork(msgspec.Struct, frozen=True):
    """Whose answers a rollout is given again, and how far."""

    attempt: AttemptId
    """The parent. It may be deleted when the fork has ended."""
    step: StepId | None = None
    """The trunk is what had been answered when this step's request arrived. `None`: all of the parent, and nothing is
    sampled."""
    say: dict[str, Any] | None = None
    """The message that is the answer of `step`, in place of a sampled one. `None`: it is sampled."""
    on_divergence: OnDivergence = OnDivergence.FAIL


class ReplayOf(msgspec.Struct, frozen=True):
    """The call whose answer was given again: where it was sampled, however often it was replayed since."""

    attempt: AttemptId
    event: EventId


class Cause(StrEnum):
    """What a divergence looks like."""

    TIME = "time"
    """A time or a date differs."""
    RANDOMNESS = "randomness"
    """An id or a number differs."""
    ORDER = "order of parallel calls"
    """The same messages come in another order."""
    SIDE_EFFECT = "side effect"
    """A tool's output differs in other words: what it looks at has changed."""
    FAILED = "failed call"
    """The recorded call of the same request had failed."""
    MORE = "more calls"
    """The parent's calls were all answered."""
    LOGPROBS = "log-probs"
    """The request asks for log-probs as texts, which no record has."""
    OTHER = "the agent"
    """The agent's own words, tools or settings differ, or its code does."""


class Diverged(msgspec.Struct, frozen=True):
    """A request that was not recorded where the trunk has calls left."""

    difference: str
    """For people: what is asked otherwise than it was recorded."""
    cause: Cause
    nearest: EventId | None = None
    """The call of the trunk that has most in common with it. `None`: its agent has none left."""
    tool: str | None = None
    """Name of the tool whose output is the first that differs. `None`: it is no tool's output."""
