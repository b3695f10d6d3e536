"""The LightningStore's contract: the only thing that runners, gateway and algorithm share.

Every implementation passes `lightningrl_testkit.store.StoreContract`. Rules that hold for each method:

- A method that returned has its effect on disk; one that raised has none.
- Repeating a call with the same arguments after a lost answer changes nothing twice.
- Anything by a worker for an attempt that isn't running (any more) raises `StaleAttempt`.
- An unknown id raises `NotFound`; a store that can't be reached or written raises `StoreUnavailable`.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Protocol

import msgspec

from lightningrl.schema import (
    Attempt,
    AttemptId,
    AttemptState,
    Claim,
    Event,
    Failure,
    GroupId,
    Mode,
    NewRollout,
    Policy,
    Progress,
    Rollout,
    RolloutId,
    RolloutState,
    TakenGroup,
    Worker,
)


class RolloutQuery(msgspec.Struct, frozen=True, kw_only=True):
    """Which rollouts to read. Every field narrows; an empty query means all."""

    run: str | None = None
    mode: Mode | None = None
    iteration: int | None = None
    variant: str | None = None
    states: tuple[RolloutState, ...] = ()
    group_id: GroupId | None = None
    ids: tuple[RolloutId, ...] = ()
    newest_first: bool = False
    """Order by creation, oldest first unless set; ties by id."""
    limit: int | None = None
    offset: int = 0


class Ended(msgspec.Struct, frozen=True):
    """One rollout that ended, with its place in the order of ending."""

    cursor: int
    """Pass the last one seen to `ended` to read on."""
    rollout: Rollout


class LedgerEntry(msgspec.Struct, frozen=True):
    """What the ledger says of one group."""

    run: str
    iteration: int
    group_id: GroupId
    status: str
    """`taken` or `skipped`."""
    rollout_ids: tuple[RolloutId, ...]
    """The rollouts that the iteration trains on; empty when skipped."""
    committed: bool


class RunSummary(msgspec.Struct, frozen=True):
    """Counts for one run."""

    run: str
    rollouts: dict[str, int]
    """State -> number of rollouts."""
    attempts: dict[str, int]
    """State -> number of attempts."""
    events: dict[str, int]
    """Kind -> number of events."""


class Store(Protocol):
    """Asynchronous, safe for concurrent use from one event loop."""

    # -- rollouts ------------------------------------------------------------------------------

    async def enqueue(self, rollouts: Sequence[NewRollout]) -> int:
        """Add rollouts that are not there yet; return how many were new.

        Raises:
            Conflict: an id exists with another task, run, mode, iteration or group; none is added.
        """
        ...

    async def claim(
        self,
        worker: str,
        *,
        run: str | None = None,
        limit: int = 1,
        lease_seconds: float = 30.0,
        wait_seconds: float = 0.0,
    ) -> list[Claim]:
        """Lease up to `limit` queued rollouts, oldest first; wait up to `wait_seconds` for one.

        Returns an empty list when there was none. Each claim starts a new attempt. The worker
        appears in `workers` whether or not it got anything.
        """
        ...

    async def heartbeat(
        self, worker: str, attempt_ids: Sequence[AttemptId], *, lease_seconds: float = 30.0
    ) -> list[AttemptId]:
        """Renew leases; return those of `attempt_ids` that are no longer this worker's to run.

        A returned attempt was lost, timed out or cancelled: stop it and write nothing more.
        """
        ...

    async def append(self, events: Sequence[Event]) -> None:
        """Append events, all or none; those whose id the attempt already has are passed over.

        After an attempt ended only rewards and logs are accepted.

        Raises:
            StaleAttempt: an event's attempt is not running; none is appended.
        """
        ...

    async def finish(
        self,
        attempt_id: AttemptId,
        state: AttemptState,
        *,
        failure: Failure | None = None,
        output: Any = None,
    ) -> Rollout:
        """End an attempt, and its rollout unless the retry policy allows another attempt.

        Finishing it again in the same way returns the rollout and changes nothing.

        Raises:
            Conflict: `failure` is missing for a failure or given for a success, or `state` is no
                end state.
            StaleAttempt: the attempt ended otherwise (its lease ran out, it was cancelled).
        """
        ...

    async def cancel(self, rollout_ids: Sequence[RolloutId]) -> int:
        """Cancel those that have not ended; return how many that were."""
        ...

    async def expire(self) -> int:
        """End attempts whose lease or time ran out, as `lost` or `timed_out`; return how many.

        The server calls it every second. An attempt's time is `timeout_seconds` plus the hold time
        reported by `extend`.
        """
        ...

    async def extend(self, attempt_ids: Sequence[AttemptId], seconds: float) -> None:
        """Push back the deadline (not the lease) of running attempts; others are passed over."""
        ...

    async def renew_all_leases(self, lease_seconds: float) -> int:
        """Extend every running attempt's lease once, after a restart of the server."""
        ...

    # -- reading -------------------------------------------------------------------------------

    async def rollouts(self, query: RolloutQuery) -> list[Rollout]:
        """The rollouts that match."""
        ...

    async def attempts(self, rollout_ids: Sequence[RolloutId]) -> list[Attempt]:
        """Their attempts, in order of rollout as given, then number."""
        ...

    async def attempt(self, attempt_id: AttemptId) -> tuple[Rollout, Attempt]:
        """One attempt with its rollout."""
        ...

    async def events(self, attempt_ids: Sequence[AttemptId]) -> list[list[Event]]:
        """Per attempt, its events in order of arrival; an attempt without events gives []."""
        ...

    async def ended(self, run: str, *, after: int = 0, limit: int = 1000) -> list[Ended]:
        """Rollouts of `run` that ended after cursor `after`, in order of ending."""
        ...

    async def progress(
        self,
        run: str,
        mode: Mode,
        iteration: int,
        *,
        variant: str | None = None,
        seen: int = -1,
        wait_seconds: float = 0.0,
    ) -> Progress:
        """Counts for one iteration; returns at once unless exactly `seen` rollouts have ended.

        Waits up to `wait_seconds` for that number to change. The end of the last one is told at once;
        ends before it may be told a tenth of a second late, together with those that came meanwhile.
        `variant=None` counts every variant.
        """
        ...

    async def summary(self, run: str) -> RunSummary:
        """Counts; an unknown run gives empty ones."""
        ...

    async def runs(self) -> list[str]:
        """The runs that have rollouts or policies, by name."""
        ...

    # -- policies and workers ------------------------------------------------------------------

    async def put_policy(self, policy: Policy) -> None:
        """Create or replace a policy (by run and name).

        Raises:
            Conflict: `version` is lower than the stored one.
        """
        ...

    async def policies(self, run: str | None = None) -> list[Policy]:
        """Policies, of one run or all, by name."""
        ...

    async def workers(self, *, seen_within_seconds: float = 30.0) -> list[Worker]:
        """Workers that claimed or heartbeat lately."""
        ...

    # -- the training ledger -------------------------------------------------------------------

    async def take(
        self, run: str, iteration: int, *, min_group: int = 2, skip: Sequence[GroupId] = ()
    ) -> list[TakenGroup]:
        """Give the complete groups of (run, train, iteration) to that iteration, in enqueue order.

        Atomic, and repeatable: taking an iteration again returns what it returned first, whatever
        has arrived since. A complete group with fewer than `min_group` succeeded and rewarded
        members, or one in `skip`, is recorded as `skipped`. Validation rollouts are never taken.

        Raises:
            Conflict: a group of the iteration is not complete; nothing is taken.
        """
        ...

    async def commit(self, run: str, iteration: int) -> None:
        """Mark what the iteration took as trained for good; committing again changes nothing."""
        ...

    async def roll_back(self, run: str, *, after: int) -> list[int]:
        """Forget takes of iterations > `after`; return those iterations, ascending.

        The rollouts stay, so that the same take gives the same groups again.
        """
        ...

    async def ledger(self, run: str) -> list[LedgerEntry]:
        """The ledger's entries by iteration, then enqueue order."""
        ...

    # -- the store itself ----------------------------------------------------------------------

    async def secret(self) -> bytes:
        """The key with which attempt keys are signed; made with the store, never shown."""
        ...

    async def now(self) -> datetime:
        """The store's clock, by which leases and deadlines are judged."""
        ...

    async def close(self) -> None:
        """Write what is under way, then let go of the file or connection."""
        ...
