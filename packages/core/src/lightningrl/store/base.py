"""The LightningStore's contract: the only thing that runners, gateway and algorithm share.

Every implementation passes `lightningrl_testkit.store.StoreContract`. Rules that hold for each method:

- A method that returned has its effect on disk; one that raised has none.
- Repeating a call with the same arguments after a lost answer changes nothing twice.
- Anything by a worker for an attempt that isn't running (any more) raises `StaleAttempt`.
- A negative limit, an integer beyond 64 bits, a NUL in a name and text that is not Unicode raise `ConfigError`.
- An unknown id raises `NotFound`; a store that can't be reached or written raises `StoreUnavailable`.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Protocol

from lightningrl.schema import (
    Attempt,
    AttemptId,
    AttemptState,
    CallEvent,
    CallLimits,
    Claim,
    DrainedHold,
    Event,
    Failure,
    GatewayProcess,
    GroupId,
    Mode,
    NewRollout,
    Policy,
    Progress,
    Resource,
    Rollout,
    RolloutId,
    TakenGroup,
    Worker,
)
from lightningrl.store.records import (
    AttemptDump,
    Ended,
    GroupQuery,
    GroupSummary,
    LedgerEntry,
    LedgerMember,
    Retention,
    RolloutDump,
    RolloutOrder,
    RolloutPlace,
    RolloutQuery,
    RunStatistics,
    RunSummary,
    Spread,
    TaskSummary,
)

__all__ = [
    "AttemptDump",
    "Ended",
    "GroupQuery",
    "GroupSummary",
    "LedgerEntry",
    "LedgerMember",
    "Retention",
    "RolloutDump",
    "RolloutOrder",
    "RolloutPlace",
    "RolloutQuery",
    "RunStatistics",
    "RunSummary",
    "Spread",
    "Store",
    "TaskSummary",
]


class Store(Protocol):
    """Asynchronous, safe for concurrent use from one event loop."""

    shared: bool
    """Whether other processes may write to the same store at the same time."""

    # -- rollouts ------------------------------------------------------------------------------

    async def enqueue(self, rollouts: Sequence[NewRollout]) -> int:
        """Add rollouts that are not there yet; return how many were new.

        A live rollout that an iteration took is passed over, although it was deleted since: its group, which
        is its own, stands in the ledger.

        Raises:
            Conflict: an id exists with another task, run, mode, iteration, group or resources, or a live
                rollout names an iteration; none is added. A live rollout that was given to an iteration
                (`give_live`) is still equal to the request that enqueued it.
            NotFound: one is pinned to a resource, or a version of it, that its run doesn't have; none
                is added.
        """
        ...

    async def claim(
        self,
        worker: str,
        *,
        run: str | None = None,
        rollout_ids: Sequence[RolloutId] | None = None,
        limit: int = 1,
        lease_seconds: float = 30.0,
        wait_seconds: float = 0.0,
    ) -> list[Claim]:
        """Lease up to `limit` queued rollouts, oldest first; wait up to `wait_seconds` for one.

        With `rollout_ids` those alone, in that order. Without, never a live rollout: that belongs to the
        process that enqueued it, which names it. Returns an empty list when there was none. Each claim
        starts a new attempt, and hands over the resources that the rollout is pinned to; one whose resource is
        gone fails instead. The worker appears in `workers` whether or not it got anything.
        """
        ...

    async def heartbeat(
        self, worker: str, attempt_ids: Sequence[AttemptId], *, lease_seconds: float = 30.0
    ) -> list[AttemptId]:
        """Renew leases; return those of `attempt_ids` that are no longer this worker's to run.

        A returned attempt was lost, timed out or cancelled: stop it and write nothing more.
        """
        ...

    async def append(self, events: Sequence[Event], *, limits: CallLimits | None = None) -> None:
        """Append events, all or none; those whose id the attempt already has are passed over.

        After an attempt ended only rewards and logs are accepted. Of the rewards with equal step and
        name the highest revision counts, of equal revisions the later one. The last reward that a
        succeeded rollout awaits completes it. What comes after its `take` is stored and changes nothing
        that was taken: `LedgerMember.events` says how many events counted.

        With `limits` a call is only added to an attempt whose calls so far don't reach them, whoever
        appended those.

        Raises:
            ConfigError: a reward is not a finite number; none is appended.
            Conflict: a recorded answer was given to another step of the attempt; none is appended.
            LimitReached: a call's attempt has reached a limit; none is appended.
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

        A success leaves the rollout incomplete while it awaits rewards (`NewRollout.await_rewards`).
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

    async def retry(self, rollout_ids: Sequence[RolloutId]) -> int:
        """Queue failed rollouts again, by an operator's will; return how many were.

        Their attempts so far count no more for the retry policy, so each has all its tries again. Those
        that have not failed are passed over, and live ones, which nobody would claim again; none of
        `rollout_ids` is changed if one is refused.

        Raises:
            NotFound: there is no such rollout.
            Conflict: a take has the rollout's group, so what it gave to its iteration is decided.
        """
        ...

    async def expire(self) -> int:
        """End attempts whose lease or time ran out, as `lost` or `timed_out`; return how many.

        Rollouts that have awaited rewards for `await_seconds` become complete without them.
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
        """The rollouts that match, in the query's order.

        `query.following(page[-1])` is the query for the next page; a page shorter than the limit was the
        last one. What is enqueued between two pages comes where it belongs and moves nothing; on PostgreSQL,
        what another process was just enqueueing may belong on a page that was read already.
        """
        ...

    async def groups(self, query: GroupQuery) -> list[GroupSummary]:
        """The groups that match, with counts of their members; an unknown run has none."""
        ...

    async def tasks(self, query: GroupQuery) -> list[TaskSummary]:
        """The tasks that match, with counts of their rollouts; an unknown run has none."""
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

    async def calls(self, attempt_id: AttemptId, *, above: int = 0) -> list[CallEvent]:
        """The model calls among an attempt's events, in order of arrival; nothing else is read.

        Args:
            attempt_id: whose.
            above: where there are at most so many, none is read and [] is given: the caller has them.

        Raises:
            NotFound: there is no such attempt.
        """
        ...

    async def ended(self, run: str, *, after: int = 0, limit: int = 1000) -> list[Ended]:
        """Rollouts of `run` that became complete after cursor `after`, in that order.

        Nobody's cursor misses one: a rollout that an operator retried comes again when it is complete.
        """
        ...

    async def wait(
        self,
        rollout_ids: Sequence[RolloutId] = (),
        *,
        group_ids: Sequence[GroupId] = (),
        wait_seconds: float = 0.0,
    ) -> list[Rollout]:
        """Wait until the named rollouts, and all members of the named groups, are complete.

        Returns those that are: all of them as soon as the last one is, else what is complete after
        `wait_seconds`. Rollouts come as given, then groups as given with their members in order; one
        that is named twice comes once. Nothing named gives an empty list.

        Raises:
            NotFound: nothing was enqueued under one of the ids.
        """
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
        """Counts for one iteration; returns at once unless exactly `seen` rollouts are complete.

        Waits up to `wait_seconds` for that number to change. The end of the last one is told at once;
        ends before it may be told a tenth of a second late, together with those that came meanwhile.
        `variant=None` counts every variant.
        """
        ...

    async def summary(self, run: str) -> RunSummary:
        """Counts; an unknown run gives empty ones."""
        ...

    async def statistics(
        self, run: str, *, mode: Mode | None = None, window_seconds: float = 60.0
    ) -> RunStatistics:
        """Counts, rates, durations, tokens and rewards of a run, or of one mode of it.

        An unknown run gives zeros and Nones. Reads all attempts of the run.
        """
        ...

    async def runs(self) -> list[str]:
        """The runs that have rollouts or policies, by name."""
        ...

    # -- resources -----------------------------------------------------------------------------

    async def put_resource(
        self, run: str, name: str, value: Any, *, ident: str | None = None
    ) -> Resource:
        """Write the next version of a resource, and return it.

        With an `ident` of the caller's that the resource has already, that version is returned; without one, the latest
        version is if it has the same value. So putting it twice is putting it once.

        Raises:
            Conflict: the resource has `ident` with another value.
        """
        ...

    async def resource(self, run: str, name: str, *, version: int | None = None) -> Resource:
        """One version of a resource; the latest unless told.

        Raises:
            NotFound: the run has no such resource, or no such version of it.
        """
        ...

    async def resources(self, run: str, *, name: str | None = None) -> list[Resource]:
        """The latest version of each of the run's resources, by name; of `name` every version.

        A run or name that is unknown gives an empty list.
        """
        ...

    # -- policies and workers ------------------------------------------------------------------

    async def put_policy(self, policy: Policy, *, if_was: Policy | None = None) -> None:
        """Create or replace a policy (by run and name).

        With `if_was` only where the stored policy still equals that: of several gateways that change
        one policy at once (a hold, a version), one wins and the others read it anew. Where the stored
        one equals `policy` already, nothing is to be done and nothing is refused.

        Raises:
            Conflict: `version` is lower than the stored one, or the stored policy is not `if_was`.
        """
        ...

    async def policies(
        self,
        run: str | None = None,
        *,
        seen: Sequence[Policy] | None = None,
        wait_seconds: float = 0.0,
    ) -> list[Policy]:
        """Policies, of one run or all, by name.

        Waits up to `wait_seconds` while they are just those `seen`, so that each gateway hears of what
        another one changed; `seen=None` never waits.
        """
        ...

    async def see_gateway(self, gateway: str, drained: Sequence[DrainedHold] = ()) -> None:
        """A gateway lives, and these are the holds in force that it has drained."""
        ...

    async def forget_gateway(self, gateway: str) -> None:
        """A gateway ends; one that is not known is forgotten already."""
        ...

    async def gateways(
        self,
        *,
        seen_within_seconds: float,
        seen: Sequence[GatewayProcess] | None = None,
        wait_seconds: float = 0.0,
    ) -> list[GatewayProcess]:
        """The gateways that were heard lately by the store's clock, by name.

        Waits up to `wait_seconds` while they are just those `seen` and have drained just the same;
        `seen=None` never waits.
        """
        ...

    async def workers(self, *, seen_within_seconds: float = 30.0) -> list[Worker]:
        """Workers that claimed or heartbeat lately."""
        ...

    # -- the training ledger -------------------------------------------------------------------

    async def give_live(
        self, run: str, iteration: int, rollout_ids: Sequence[RolloutId]
    ) -> list[RolloutId]:
        """Give complete live rollouts of `run` to a training iteration, whose `take` then has their groups.

        Atomic, and decided once: an iteration that was given some, or that has taken, keeps what it has
        whatever is asked for later, and `roll_back` changes nothing of it. Each is given at most once; from
        then on its `NewRollout.iteration` is that one. Returns all that the iteration has, in enqueue order.

        Raises:
            ConfigError: `iteration` is below 1.
            Conflict: one is no live rollout of `run`, is not complete, or was given to another iteration;
                none is given.
            NotFound: there is no such rollout; none is given.
        """
        ...

    async def take(
        self,
        run: str,
        iteration: int,
        *,
        min_group: int = 2,
        skip: Sequence[GroupId] = (),
        failure_reward: float | None = None,
    ) -> list[TakenGroup]:
        """Give the complete groups of (run, train, iteration) to that iteration, in enqueue order.

        Live rollouts that it was given (`give_live`) are among them, in groups of any size.

        Atomic, and repeatable: taking an iteration again returns what it returned first, whatever has
        arrived since. A complete group with fewer than `min_group` usable members (a live one: with
        none), or one in `skip`, is recorded as `skipped`. Validation rollouts are never taken.

        Usable are members that succeeded and are rewarded. With a `failure_reward`, finite, so are those
        that failed by the agent's fault: whose last attempt failed of `AGENT` or ran out of time. They
        are given that reward, whatever the agent had rewarded itself with. What failed of anything else
        is never usable.

        Raises:
            ConfigError: `failure_reward` is not finite.
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

    async def ledger(
        self, run: str, *, iteration: int | None = None, group_id: GroupId | None = None
    ) -> list[LedgerEntry]:
        """The ledger's entries by iteration, then enqueue order; of one iteration or group, where that is given."""
        ...

    # -- deletion ------------------------------------------------------------------------------

    async def delete_rollouts(self, rollout_ids: Sequence[RolloutId]) -> int:
        """Delete rollouts for good, with attempts, events and what the ledger says of them.

        Returns how many there were; ids that are unknown are passed over. This and `delete_run` are the
        only ways in which an event leaves the store. The space is used again.

        Raises:
            Conflict: one runs, or an iteration was given it (`take`, `give_live`) and has not committed; none is
                deleted. `roll_back` takes back a `take`, and leaves what `give_live` gave.
        """
        ...

    async def delete_run(self, run: str) -> int:
        """Delete a run's rollouts as `delete_rollouts` does, its ledger, policies and resources.

        Returns how many rollouts there were; an unknown run has none. Live rollouts that an iteration was
        given and has not taken are deleted too.

        Raises:
            Conflict: a rollout of it runs, or a take is not committed; nothing is deleted.
        """
        ...

    async def retain(self, rule: Retention) -> int:
        """Delete what `rule` does not keep, a few rollouts at a time; return how many were.

        Neither age nor size given deletes nothing. What can't be deleted is kept, however old or large.
        """
        ...

    # -- moving a run --------------------------------------------------------------------------

    async def dump(self, run: str, *, after: int = 0, limit: int = 100) -> list[RolloutDump]:
        """Rollouts of `run` whole, in order of enqueueing, after the cursor `after`.

        On PostgreSQL a rollout that another process is just enqueueing may get a place before the cursor.
        """
        ...

    async def load(
        self,
        *,
        rollouts: Sequence[RolloutDump] = (),
        completed: Sequence[RolloutId] = (),
        resources: Sequence[Resource] = (),
        ledger: Sequence[LedgerEntry] = (),
    ) -> int:
        """Write what another store dumped, as it was there; return how many of the records were new.

        Resources come before the rollouts that are pinned to them. Rollouts must come in order of
        enqueueing, then `completed`, the complete ones in order of completion, which may be told over
        several calls, then the ledger. What is there already is passed over, so a load that broke off is
        done again from the start; also where the store went on meanwhile, and a rollout ended, got rewards,
        was given to an iteration or tried again. A live rollout that an iteration took and that was deleted
        since comes back as that iteration's, so it is not trained twice; if it was dumped before it was
        complete, it is passed over. All that the ledger says of one iteration comes in one call: between
        two, what the first one says is committed may be deleted.

        Raises:
            Conflict: a record is there, and is neither what was dumped nor what could become of it; nothing
                of this call is written.
            NotFound: `completed` or `ledger` names what was not loaded, or a rollout is pinned to a resource
                that is not there; nothing is written.
        """
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
