"""What a run's file says, whatever its format, and how a store takes it in.

Resources come first; then each rollout, followed by its attempts, each followed by its events; the ids of complete
rollouts in order of completion; the ledger. What a rollout is pinned to that was put after the file was begun stands
before it. Policies, whose endpoints have keys, and the store's secret stay
out.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Container, Iterator
from datetime import datetime
from pathlib import Path

import msgspec
from msgspec.structs import replace

from lightningrl.errors import ConfigError
from lightningrl.schema import Attempt, Event, Resource, Rollout, RolloutId
from lightningrl.store.base import AttemptDump, LedgerEntry, RolloutDump, Store

FORMAT = "lightningrl-run"
VERSION = 1

_ROLLOUTS_AT_ONCE = 20
_IDS_AT_ONCE = 1000
_BYTES_AT_ONCE = 8 << 20
"""Of rollouts that are loaded at once, before they are compressed: a server takes 64 MiB."""


class Header(msgspec.Struct, frozen=True):
    """What a file says of itself."""

    format: str
    version: int
    run: str


class DatedAttempt(msgspec.Struct, frozen=True):
    """An attempt of the rollout before it; its events follow."""

    attempt: Attempt
    deadline_at: datetime
    """When its time runs out, extensions included."""


class Completed(msgspec.Struct, frozen=True):
    """Complete rollouts, in order of completion."""

    ids: tuple[RolloutId, ...]


Record = Resource | Rollout | DatedAttempt | Event | Completed | LedgerEntry
"""Anything in a file."""


def header_of(run: str) -> Header:
    """What a file of `run` says of itself."""
    return Header(FORMAT, VERSION, run)


def check_header(header: Header | None, path: Path) -> str:
    """The run of the file at `path`; `header` is `None` where it has none.

    Raises:
        ConfigError: it is no run's file, or of another version.
    """
    if header is None or header.format != FORMAT:
        raise ConfigError(f"{str(path)!r} is no run that `lightningrl export --to` wrote")
    if header.version != VERSION:
        raise ConfigError(
            f"{str(path)!r} is a run's file of version {header.version}, this LightningRL reads"
            f" version {VERSION}; export it again"
        )
    return header.run


async def records_of(store: Store, run: str) -> AsyncIterator[Record]:
    """The records of a run's file. An unknown run has none.

    While the run goes on, each rollout is whole and the ledger names none that is missing or not complete.
    """
    # Read first: whatever the ledger names is complete, and read after it unless it is deleted.
    ledger = await store.ledger(run)
    written: set[tuple[str, int]] = set()
    for latest in await store.resources(run):
        for resource in await store.resources(run, name=latest.name):
            yield resource
            written.add((resource.name, resource.version))
    placed: dict[RolloutId, bool] = {}
    """Complete rollouts, and whether their place in the order is written."""
    async for dumped in _dumped(store, run):
        pins = set(dumped.rollout.spec.resources.items())
        for name, version in sorted(pins - written):
            yield await store.resource(run, name, version=version)
        written |= pins
        for record in _of_rollout(dumped):
            yield record
        if dumped.rollout.complete:
            placed[dumped.rollout.id] = False
    cursor = 0
    while ended := await store.ended(run, after=cursor, limit=_IDS_AT_ONCE):
        ids = tuple(one.rollout.id for one in ended if one.rollout.id in placed)
        placed |= dict.fromkeys(ids, True)
        yield Completed(ids)
        cursor = ended[-1].cursor
    retried = tuple(ident for ident, its_place in placed.items() if not its_place)
    if retried:
        yield Completed(retried)
    for entry in _consistent(ledger, placed):
        yield entry


def _consistent(ledger: list[LedgerEntry], complete: Container[RolloutId]) -> Iterator[LedgerEntry]:
    """The ledger without what was deleted since, and without iterations that were rolled back."""
    kept = [
        (entry, tuple(one for one in entry.members if one.rollout_id in complete))
        for entry in ledger
    ]
    undone = {
        entry.iteration
        for entry, members in kept
        if not entry.committed and len(members) < len(entry.members)
    }
    for entry, members in kept:
        if entry.iteration not in undone:
            yield replace(entry, members=members)


async def _dumped(store: Store, run: str) -> AsyncIterator[RolloutDump]:
    cursor = 0
    while page := await store.dump(run, after=cursor, limit=_ROLLOUTS_AT_ONCE):
        for dumped in page:
            yield dumped
        cursor = page[-1].cursor


def _of_rollout(dumped: RolloutDump) -> Iterator[Record]:
    yield dumped.rollout
    for one in dumped.attempts:
        yield DatedAttempt(one.attempt, one.deadline_at)
        yield from one.events


class Loader:
    """Puts rollouts together again and writes everything into a store, some rollouts or one iteration at a time."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._new = 0
        self._whole: list[RolloutDump] = []
        self._bytes = 0
        """Of those."""
        self._rollout: Rollout | None = None
        self._attempts: list[tuple[DatedAttempt, list[Event]]] = []
        self._entries: list[LedgerEntry] = []
        """Of one iteration: what it is said to have committed may be deleted from then on."""

    async def add(self, record: Record) -> None:
        """Take the next record; one that is of no rollout ends the rollout before it."""
        if isinstance(record, DatedAttempt):
            self._attempts.append((record, []))
        elif isinstance(record, Event):
            self._attempts[-1][1].append(record)
        else:
            self._end_rollout()
            if isinstance(record, Rollout):
                self._rollout = record
                await self._load_rollouts(_ROLLOUTS_AT_ONCE)
            else:
                await self._load_other(record)

    async def end(self) -> int:
        """Write what is left; return how many of all records were new."""
        self._end_rollout()
        await self._load_rollouts(1)
        await self._load_entries()
        return self._new

    def _end_rollout(self) -> None:
        if self._rollout is not None:
            attempts = tuple(
                AttemptDump(one.attempt, one.deadline_at, tuple(events))
                for one, events in self._attempts
            )
            whole = RolloutDump(0, self._rollout, attempts)
            self._whole.append(whole)
            self._bytes += len(msgspec.msgpack.encode(whole))
        self._rollout, self._attempts = None, []

    async def _load_rollouts(self, at_least: int) -> None:
        if len(self._whole) >= at_least or self._bytes >= _BYTES_AT_ONCE:
            self._new += await self._store.load(rollouts=self._whole)
            self._whole, self._bytes = [], 0

    async def _load_other(self, record: Resource | Completed | LedgerEntry) -> None:
        await self._load_rollouts(1)
        if isinstance(record, Resource):
            self._new += await self._store.load(resources=[record])
        elif isinstance(record, Completed):
            self._new += await self._store.load(completed=record.ids)
        else:
            if self._entries and self._entries[0].iteration != record.iteration:
                await self._load_entries()
            self._entries.append(record)

    async def _load_entries(self) -> None:
        self._new += await self._store.load(ledger=self._entries)
        self._entries = []
