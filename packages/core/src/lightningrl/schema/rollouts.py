"""Rollouts, their attempts, what a worker is handed and what the ledger takes."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Any

import msgspec

from lightningrl.schema.forks import Fork
from lightningrl.schema.ids import AttemptId, GroupId, RolloutId
from lightningrl.schema.retries import FailureKind, RetryPolicy
from lightningrl.schema.states import AttemptState, Mode, RolloutState


class RewardsFrom(StrEnum):
    """Who may reward a rollout while its attempt runs."""

    JUDGED = "judged"
    """The runner alone: by the recipe's function, by what the agent returns or emits within it."""
    EMITTED = "emitted"
    """The agent as well, over HTTP with its attempt key (`POST LIGHTNINGRL_ATTEMPT_URL/rewards`)."""


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
    """The iteration whose update (train) or score (val, test) it belongs to; live: 0 until one is given it."""
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
    rewards: RewardsFrom = RewardsFrom.JUDGED
    await_rewards: tuple[str, ...] = ()
    """Names of rewards, for the rollout or any of its steps, that must be in before it is complete."""
    await_seconds: float | None = None
    """How long after its success it awaits them; then it is complete with the rewards that it has. `None`:
    for as long as it takes."""
    resources: dict[str, int] = {}
    """Resource name -> version, of the same run, which the claim hands to the runner."""
    fork: Fork | None = None
    """Whose recorded answers it is given first. `None`: nobody's."""
    replay_staleness: int | None = None
    """Of an attempt that was lost, or that failed by infrastructure, the next one is given the answers again, but for those
    that are more versions older than the policy. `None`: none is given again."""


def may_replay(spec: NewRollout, number: int) -> bool:
    """Whether attempt `number` of a rollout, 1 for the first, may be answered from a record."""
    return spec.fork is not None or (number > 1 and spec.replay_staleness is not None)


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
    forgiven: int = 0
    """Attempts up to this number count no more for the retry policy, since an operator's `retry`."""
    complete: bool = False
    """It has ended, and if it succeeded the rewards that it awaits are in."""

    @property
    def id(self) -> RolloutId:
        """The rollout's id."""
        return self.spec.id


class Failure(msgspec.Struct, frozen=True):
    """Why an attempt ended without success."""

    kind: FailureKind
    message: str
    """For people: the exception and where it came from. What no database or wire can carry (NUL, half of a
    surrogate pair) is written out as an escape."""

    def __post_init__(self) -> None:
        """Make the message one that can be kept: a program's output may hold anything."""
        text = self.message.replace("\0", r"\x00")
        if not text.isascii():
            text = text.encode("utf-8", "backslashreplace").decode()
        msgspec.structs.force_setattr(self, "message", text)


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


class Resource(msgspec.Struct, frozen=True):
    """One version of something that an algorithm tunes and agents use: a prompt template, say."""

    run: str
    name: str
    version: int
    """1 for the first; a number is never used for two values."""
    value: Any
    """JSON."""
    created_at: datetime
    id: str | None = None
    """The caller's, under which putting it again finds it. `None`: it is found by its value."""


class Claim(msgspec.Struct, frozen=True):
    """A rollout handed to a worker."""

    rollout: Rollout
    attempt: Attempt
    key: str
    """The attempt key: lets the agent call models at the gateway, and post rewards where the rollout
    says `RewardsFrom.EMITTED`; nothing else."""
    resources: tuple[Resource, ...] = ()
    """Those that the rollout is pinned to, by name."""


class TakenRollout(msgspec.Struct, frozen=True):
    """A rollout that the ledger gave to an iteration, with the attempt that counts."""

    rollout: Rollout
    attempt: Attempt
    reward: float
    """The final reward of the revision that was highest when it was taken; of one that failed the
    recipe's `algorithm.failure_reward`."""
    events: int
    """Events that the attempt had then. What came later, rewards too, is stored and not trained."""


class TakenGroup(msgspec.Struct, frozen=True):
    """The members of one complete group that were taken, in member order."""

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
    awaiting: int = 0
    """Succeeded rollouts that still await rewards."""

    @property
    def ended(self) -> int:
        """Complete rollouts: those in a terminal state, without the ones that still await rewards."""
        return self.succeeded + self.failed + self.cancelled - self.awaiting

    @property
    def total(self) -> int:
        """All rollouts."""
        return self.ended + self.awaiting + self.queued + self.running

    @property
    def mean_reward(self) -> float | None:
        """Mean final reward. `None` where no rollout has one."""
        return self.reward_sum / self.rewarded if self.rewarded else None
