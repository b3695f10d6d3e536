"""The LightningStore in an SQL database: the contract's operations over a writer and readers.

Invariant: an operation is the same function whatever the database. What differs stands in the
database's `Session` and `Committer`, and in the statements of its folder under `sql/`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any, TypeVar

from lightningrl.errors import StoreUnavailable
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
from lightningrl.store import (
    arguments,
    deletion,
    event_log,
    gateways,
    ledger,
    lifecycle,
    overview,
    policies,
    reading,
    resources,
    transfer,
)
from lightningrl.store.readers import Readers
from lightningrl.store.records import (
    Ended,
    GroupQuery,
    GroupSummary,
    LedgerEntry,
    Retention,
    RolloutDump,
    RolloutQuery,
    RunStatistics,
    RunSummary,
    TaskSummary,
)
from lightningrl.store.rows import seconds_to_us
from lightningrl.store.session import Session, Wake
from lightningrl.store.waiting import Patience, Wakes
from lightningrl.store.writer import Writer

T = TypeVar("T")

_RETIRED_AT_ONCE = 50
"""Rollouts that one transaction deletes by age or size, so that nobody waits long for it."""

GATHER_SECONDS = 0.1
"""How long `progress` gathers further ends before it tells of the first: without it, rollouts that end
one after the other would cost a round trip each."""

_AWAY_US = seconds_to_us(5.0)
"""Between two calls of a regular `expire`: more means that leases could not be renewed meanwhile."""

_RESTART_LEASE_US = seconds_to_us(30.0)
"""What every running attempt is given then, and when a server starts."""


class SqlStore:
    """Implements `Store`; each database's own class opens it."""

    shared: bool = False
    """See `Store.shared`."""

    def __init__(
        self,
        name: str,
        *,
        writer: Writer | None,
        readers: Readers,
        wakes: Wakes,
        secret: bytes,
        look_seconds: float | None,
        gather_seconds: float,
    ) -> None:
        """Take over what was opened.

        Args:
            name: Of the store, for messages; no secret.
            writer: None where the store is read-only.
            readers: Of the same store.
            wakes: Told of every commit that changed something that is waited for.
            secret: See `Store.secret`.
            look_seconds: How often who waits looks unasked, because `wakes` may not be told of
                another process's commit. None: it is told of each.
            gather_seconds: How late `progress` may tell that some rollouts, and not all, have ended.
        """
        self.name = name
        self._writer = writer
        self._readers = readers
        self._wakes = wakes
        self._secret = secret
        self._look_seconds = look_seconds
        self._gather_seconds = gather_seconds
        self._expired_us: int | None = None
        """When `expire` was done last, where it is called regularly."""

    def announce(self, url: str) -> None:
        """Note for others who would write that this process serves the store at `url`.

        A database that takes several writers has nobody to tell.
        """

    async def close(self) -> None:
        """Write what is under way, then let go of the database; closing again changes nothing."""
        if self._writer is not None:
            await self._writer.close()
        await self._readers.close()
        self._wakes.wake(Wake)

    def _write(
        self, operation: Callable[[Session], T], *, rows: int | None = None
    ) -> asyncio.Future[T]:
        if self._writer is None:
            raise StoreUnavailable(
                f"the store {self.name!r} was opened read-only; write through its server"
            )

        def within_limits(session: Session) -> T:
            try:
                return operation(session)
            except arguments.UNKEEPABLE as error:
                raise arguments.refused(error) from error

        return self._writer.submit(within_limits, rows=rows)

    async def _read(self, operation: Callable[[Session], T]) -> T:
        try:
            return await self._readers.read(operation)
        except arguments.UNKEEPABLE as error:
            raise arguments.refused(error) from error

    # -- rollouts ------------------------------------------------------------------------------

    async def enqueue(self, rollouts: Sequence[NewRollout]) -> int:
        """See `Store.enqueue`."""
        arguments.check_rollouts(rollouts)
        return await self._write(
            lambda session: lifecycle.enqueue(session, rollouts, session.now_us()),
            rows=len(rollouts),
        )

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
        """See `Store.claim`.

        Cancelled while it waits it claims nothing; cancelled when the claim is already being
        written it returns what was claimed, which nobody else would know of.
        """
        arguments.check_limit(limit)
        arguments.check_names(worker, run)
        patience = Patience(wait_seconds)
        lease_us = seconds_to_us(lease_seconds)

        def once(session: Session) -> list[Claim]:
            now = session.now()
            return lifecycle.claim(
                session, worker, run, rollout_ids, limit, lease_us, now, self._secret
            )

        while True:
            change = self._wakes.next(Wake.QUEUED)
            claims = await self._not_lost(self._write(once, rows=2 * limit))
            if claims or not await patience.wait(change, self._look_seconds):
                return claims

    @staticmethod
    async def _not_lost(claiming: asyncio.Future[list[Claim]]) -> list[Claim]:
        try:
            return await asyncio.shield(claiming)
        except asyncio.CancelledError:
            claims = await claiming
            if not claims:
                raise
            return claims

    async def heartbeat(
        self, worker: str, attempt_ids: Sequence[AttemptId], *, lease_seconds: float = 30.0
    ) -> list[AttemptId]:
        """See `Store.heartbeat`."""
        arguments.check_names(worker)
        lease_us = seconds_to_us(lease_seconds)
        return await self._write(
            lambda session: lifecycle.heartbeat(
                session, worker, attempt_ids, lease_us, session.now_us()
            ),
            rows=len(attempt_ids),
        )

    async def append(self, events: Sequence[Event], *, limits: CallLimits | None = None) -> None:
        """See `Store.append`."""
        event_log.check(events)
        arguments.check_events(events)
        await self._write(
            lambda session: event_log.append(session, events, limits), rows=len(events)
        )

    async def finish(
        self,
        attempt_id: AttemptId,
        state: AttemptState,
        *,
        failure: Failure | None = None,
        output: Any = None,
    ) -> Rollout:
        """See `Store.finish`."""
        lifecycle.check_finish(attempt_id, state, failure)
        return await self._write(
            lambda session: lifecycle.finish(
                session, attempt_id, state, failure, output, session.now_us()
            ),
            rows=2,
        )

    async def cancel(self, rollout_ids: Sequence[RolloutId]) -> int:
        """See `Store.cancel`."""
        return await self._write(
            lambda session: lifecycle.cancel(session, rollout_ids, session.now_us())
        )

    async def retry(self, rollout_ids: Sequence[RolloutId]) -> int:
        """See `Store.retry`."""
        return await self._write(lambda session: lifecycle.retry(session, rollout_ids))

    async def expire(self) -> int:
        """See `Store.expire`."""

        def once(session: Session) -> tuple[int, int]:
            now_us = session.now_us()
            away = self._expired_us is not None and now_us - self._expired_us > _AWAY_US
            if away:  # nobody could renew a lease meanwhile
                lifecycle.renew_all_leases(session, _RESTART_LEASE_US, now_us)
            return now_us, lifecycle.expire(session, now_us)

        now_us, ended = await self._write(once)
        if self._expired_us is not None:
            self._expired_us = now_us
        return ended

    async def expire_regularly(self) -> int:
        """Say that from now on `expire` is called every second; return how many leases were extended.

        Where it was not for some time (the store could not be written, the process or its machine stood
        still), the next call first extends every lease, as this one does.
        """

        def once(session: Session) -> tuple[int, int]:
            now_us = session.now_us()
            return now_us, lifecycle.renew_all_leases(session, _RESTART_LEASE_US, now_us)

        self._expired_us, extended = await self._write(once)
        return extended

    async def extend(self, attempt_ids: Sequence[AttemptId], seconds: float) -> None:
        """See `Store.extend`."""
        await self._write(lambda session: lifecycle.extend(session, attempt_ids, seconds))

    async def renew_all_leases(self, lease_seconds: float) -> int:
        """See `Store.renew_all_leases`."""
        lease_us = seconds_to_us(lease_seconds)
        return await self._write(
            lambda session: lifecycle.renew_all_leases(session, lease_us, session.now_us())
        )

    # -- reading -------------------------------------------------------------------------------

    async def rollouts(self, query: RolloutQuery) -> list[Rollout]:
        """See `Store.rollouts`."""
        arguments.check_limit(query.limit)
        return await self._read(lambda session: reading.rollouts(session, query))

    async def groups(self, query: GroupQuery) -> list[GroupSummary]:
        """See `Store.groups`."""
        arguments.check_limit(query.limit)
        return await self._read(lambda session: overview.groups(session, query))

    async def tasks(self, query: GroupQuery) -> list[TaskSummary]:
        """See `Store.tasks`."""
        arguments.check_limit(query.limit)
        return await self._read(lambda session: overview.tasks(session, query))

    async def attempts(self, rollout_ids: Sequence[RolloutId]) -> list[Attempt]:
        """See `Store.attempts`."""
        return await self._read(lambda session: reading.attempts(session, rollout_ids))

    async def attempt(self, attempt_id: AttemptId) -> tuple[Rollout, Attempt]:
        """See `Store.attempt`."""
        return await self._read(lambda session: reading.attempt(session, attempt_id))

    async def events(self, attempt_ids: Sequence[AttemptId]) -> list[list[Event]]:
        """See `Store.events`."""
        return await self._read(
            lambda session: [event_log.read(session, ident) for ident in attempt_ids]
        )

    async def calls(self, attempt_id: AttemptId, *, above: int = 0) -> list[CallEvent]:
        """See `Store.calls`."""
        return await self._read(lambda session: event_log.calls(session, attempt_id, above))

    async def ended(self, run: str, *, after: int = 0, limit: int = 1000) -> list[Ended]:
        """See `Store.ended`."""
        arguments.check_limit(limit)
        return await self._read(lambda session: reading.ended(session, run, after, limit))

    async def wait(
        self,
        rollout_ids: Sequence[RolloutId] = (),
        *,
        group_ids: Sequence[GroupId] = (),
        wait_seconds: float = 0.0,
    ) -> list[Rollout]:
        """See `Store.wait`."""
        patience = Patience(wait_seconds)
        while True:
            change = self._wakes.next(Wake.ENDED)
            named = await self._read(lambda session: reading.named(session, rollout_ids, group_ids))
            if not named.open or not await patience.wait(change, self._look_seconds):
                break
        return await self._read(lambda session: reading.ended_of(session, named.ids))

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
        """See `Store.progress`."""
        patience = Patience(wait_seconds)
        gathering = Patience(0.0)  # what changed before the call is told at once
        while True:
            change = self._wakes.next(Wake.ENDED)
            progress = await self._read(
                lambda session: reading.progress(session, run, mode, iteration, variant)
            )
            if progress.ended == seen:
                if not await patience.wait(change, self._look_seconds):
                    return progress
                gathering = Patience(min(self._gather_seconds, patience.left))
            elif progress.ended == progress.total or not await gathering.wait(change):
                return progress

    async def summary(self, run: str) -> RunSummary:
        """See `Store.summary`."""
        return await self._read(lambda session: reading.summary(session, run))

    async def statistics(
        self, run: str, *, mode: Mode | None = None, window_seconds: float = 60.0
    ) -> RunStatistics:
        """See `Store.statistics`."""
        window_us = seconds_to_us(window_seconds)
        return await self._read(
            lambda session: overview.statistics(session, run, mode, window_us, session.now_us())
        )

    async def runs(self) -> list[str]:
        """See `Store.runs`."""
        return await self._read(reading.runs)

    # -- resources -----------------------------------------------------------------------------

    async def put_resource(
        self, run: str, name: str, value: Any, *, ident: str | None = None
    ) -> Resource:
        """See `Store.put_resource`."""
        arguments.check_names(run, name, ident)
        return await self._write(
            lambda session: resources.put(session, run, name, value, ident, session.now_us())
        )

    async def resource(self, run: str, name: str, *, version: int | None = None) -> Resource:
        """See `Store.resource`."""
        return await self._read(lambda session: resources.read(session, run, name, version))

    async def resources(self, run: str, *, name: str | None = None) -> list[Resource]:
        """See `Store.resources`."""
        return await self._read(lambda session: resources.listed(session, run, name))

    # -- policies and workers ------------------------------------------------------------------

    async def put_policy(self, policy: Policy, *, if_was: Policy | None = None) -> None:
        """See `Store.put_policy`."""
        arguments.check_names(policy.run, policy.name)
        await self._write(lambda session: policies.put(session, policy, if_was))

    async def policies(
        self,
        run: str | None = None,
        *,
        seen: Sequence[Policy] | None = None,
        wait_seconds: float = 0.0,
    ) -> list[Policy]:
        """See `Store.policies`."""
        patience = Patience(wait_seconds)
        while True:
            change = self._wakes.next(Wake.POLICY)
            found = await self._read(lambda session: policies.read(session, run))
            if seen is None or found != list(seen):
                return found
            if not await patience.wait(change, self._look_seconds):
                return found

    async def see_gateway(self, gateway: str, drained: Sequence[DrainedHold] = ()) -> None:
        """See `Store.see_gateway`."""
        arguments.check_names(gateway)
        await self._write(lambda session: gateways.see(session, gateway, drained))

    async def forget_gateway(self, gateway: str) -> None:
        """See `Store.forget_gateway`."""
        await self._write(lambda session: gateways.forget(session, gateway))

    async def gateways(
        self,
        *,
        seen_within_seconds: float,
        seen: Sequence[GatewayProcess] | None = None,
        wait_seconds: float = 0.0,
    ) -> list[GatewayProcess]:
        """See `Store.gateways`."""
        patience = Patience(wait_seconds)
        while True:
            change = self._wakes.next(Wake.GATEWAY)
            found = await self._read(lambda session: gateways.read(session, seen_within_seconds))
            if seen is None or not gateways.same(found, seen):
                return found
            if not await patience.wait(change, self._look_seconds):
                return found

    async def workers(self, *, seen_within_seconds: float = 30.0) -> list[Worker]:
        """See `Store.workers`."""
        within_us = seconds_to_us(seen_within_seconds)
        return await self._read(
            lambda session: reading.workers(session, session.now_us() - within_us)
        )

    # -- the training ledger -------------------------------------------------------------------

    async def give_live(
        self, run: str, iteration: int, rollout_ids: Sequence[RolloutId]
    ) -> list[RolloutId]:
        """See `Store.give_live`."""
        ledger.check_iteration(iteration)
        return await self._write(
            lambda session: ledger.give_live(session, run, iteration, rollout_ids),
            rows=len(rollout_ids),
        )

    async def take(
        self,
        run: str,
        iteration: int,
        *,
        min_group: int = 2,
        skip: Sequence[GroupId] = (),
        failure_reward: float | None = None,
    ) -> list[TakenGroup]:
        """See `Store.take`."""
        ledger.check(failure_reward)
        return await self._write(
            lambda session: ledger.take(
                session, run, iteration, min_group, skip, failure_reward, session.now_us()
            )
        )

    async def commit(self, run: str, iteration: int) -> None:
        """See `Store.commit`."""
        await self._write(lambda session: ledger.commit(session, run, iteration))

    async def roll_back(self, run: str, *, after: int) -> list[int]:
        """See `Store.roll_back`."""
        return await self._write(lambda session: ledger.roll_back(session, run, after))

    async def ledger(
        self, run: str, *, iteration: int | None = None, group_id: GroupId | None = None
    ) -> list[LedgerEntry]:
        """See `Store.ledger`."""
        return await self._read(lambda session: ledger.entries(session, run, iteration, group_id))

    # -- deletion ------------------------------------------------------------------------------

    async def delete_rollouts(self, rollout_ids: Sequence[RolloutId]) -> int:
        """See `Store.delete_rollouts`."""
        return await self._write(lambda session: deletion.delete_rollouts(session, rollout_ids))

    async def delete_run(self, run: str) -> int:
        """See `Store.delete_run`."""
        return await self._write(lambda session: deletion.delete_run(session, run))

    async def retain(self, rule: Retention) -> int:
        """See `Store.retain`."""
        deleted = 0
        if rule.max_age_seconds is not None:
            age_us = seconds_to_us(rule.max_age_seconds)
            while count := await self._retire(rule, age_us):
                deleted += count
        limit = rule.max_bytes
        while limit is not None and await self._read(deletion.used_bytes) > limit:
            count = await self._retire(rule, 0)
            if not count:
                break
            deleted += count
        return deleted

    async def _retire(self, rule: Retention, age_us: int) -> int:
        return await self._write(
            lambda session: deletion.retire(
                session, rule.modes, session.now_us() - age_us, _RETIRED_AT_ONCE
            )
        )

    # -- moving a run --------------------------------------------------------------------------

    async def dump(self, run: str, *, after: int = 0, limit: int = 100) -> list[RolloutDump]:
        """See `Store.dump`."""
        arguments.check_limit(limit)
        return await self._read(lambda session: transfer.dump(session, run, after, limit))

    async def load(
        self,
        *,
        rollouts: Sequence[RolloutDump] = (),
        completed: Sequence[RolloutId] = (),
        resources: Sequence[Resource] = (),
        ledger: Sequence[LedgerEntry] = (),
    ) -> int:
        """See `Store.load`."""

        def loaded(session: Session) -> int:
            return (
                sum(transfer.load_resource(session, one) for one in resources)
                + sum(transfer.load_rollout(session, one) for one in rollouts)
                + sum(transfer.complete(session, one) for one in completed)
                + sum(transfer.load_entry(session, one, session.now_us()) for one in ledger)
            )

        return await self._write(loaded)

    # -- the store itself ----------------------------------------------------------------------

    async def check_writable(self) -> None:
        """Write something, so that a full disk or a lost database shows.

        Raises:
            StoreUnavailable: the store can't be written; the message says why.
        """
        await self._write(
            lambda session: session.run("note_check", value=str(session.now_us()).encode())
        )

    async def secret(self) -> bytes:
        """See `Store.secret`."""
        return self._secret

    async def now(self) -> datetime:
        """See `Store.now`."""
        return await self._read(lambda session: session.now())
