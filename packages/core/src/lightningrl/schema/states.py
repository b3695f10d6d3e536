"""What a rollout is for, where rollouts and attempts stand, and the two tables of their moves."""

from __future__ import annotations

from enum import StrEnum


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
    RolloutState.FAILED: frozenset({RolloutState.QUEUED}),  # an operator's `retry`
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
    {RolloutState.SUCCEEDED, RolloutState.FAILED, RolloutState.CANCELLED}
)
"""States in which a rollout has ended. Only an operator's `retry` leads out of one: `FAILED`."""
