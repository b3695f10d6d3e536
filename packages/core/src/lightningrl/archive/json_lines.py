"""A run's file as JSON lines: one object a line, read without any library.

Invariant: it is linear as the store is: of a call that continues another only the difference stands in the file.

The first line is a `Header` and the last one a `Footer`. Token ids and log-probs are base64 of their bytes.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Generator, Iterator
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import IO

import msgspec

from lightningrl.archive import records
from lightningrl.archive.records import Completed, DatedAttempt, Record
from lightningrl.errors import ConfigError
from lightningrl.schema import Attempt, CallEvent, Event, Resource, Rollout, RolloutId
from lightningrl.store.base import LedgerEntry
from lightningrl.store.deltas import Head, Shared, head_of, restore, shorten

_COMPARED = 8
"""Earlier calls of an attempt that a call is compared with."""


class _Line(msgspec.Struct, frozen=True, tag_field="record"):
    """One line of the file."""


class HeaderLine(_Line, frozen=True, tag="header"):
    """The first line."""

    format: str
    version: int
    run: str


class ResourceLine(_Line, frozen=True, tag="resource"):
    """One version of a resource."""

    resource: Resource


class RolloutLine(_Line, frozen=True, tag="rollout"):
    """A rollout; its attempts follow."""

    rollout: Rollout


class AttemptLine(_Line, frozen=True, tag="attempt"):
    """An attempt of the rollout above; its events follow."""

    attempt: Attempt
    deadline_at: datetime


class EventLine(_Line, frozen=True, tag="event", omit_defaults=True):
    """An event of the attempt above."""

    event: Event
    """Of a call with a base only what the base lacks."""
    base: int | None = None
    """Which of the attempt's events, 0-based, is the call that this one continues. `None`: none."""
    shared_ids: int = 0
    """Bytes of the base's prompt and answer ids that come first."""
    shared_head: int = 0
    """Bytes of the base's request that come first."""
    shared_tail: int = 0
    """Bytes of the base's request that come last."""


class CompletedLine(_Line, frozen=True, tag="completed"):
    """Complete rollouts, in order of completion."""

    ids: tuple[RolloutId, ...]


class LedgerLine(_Line, frozen=True, tag="ledger"):
    """What the ledger says of one group."""

    entry: LedgerEntry


class Footer(_Line, frozen=True, tag="footer"):
    """The last line: without it the file is not whole."""

    rollouts: int


Line = (
    HeaderLine
    | ResourceLine
    | RolloutLine
    | AttemptLine
    | EventLine
    | CompletedLine
    | LedgerLine
    | Footer
)
"""Any line."""

_decoder = msgspec.json.Decoder(Line)


@contextlib.contextmanager
def writing(path: Path, run: str) -> Generator[Callable[[Record], None]]:
    """What writes a record of `run` to the file at `path`, which is whole when the body has ended."""
    with path.open("wb") as file:
        lines = _Writer(file)
        header = records.header_of(run)
        lines.put(HeaderLine(header.format, header.version, header.run))
        yield lines.write
        lines.put(Footer(lines.rollouts))


def reading(path: Path) -> tuple[str, Iterator[Record]]:
    """The run of the file at `path`, and its records.

    Raises:
        ConfigError: there is no such file, or it is none of ours, of another version, or not whole.
    """
    return _check(path), _records(path)


class _Writer:
    """Writes records as lines, of calls the difference."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._place = 0
        self._heads: list[Head] = []
        """Calls of the attempt that is being written."""
        self.rollouts = 0

    def put(self, line: Line) -> None:
        self._file.write(msgspec.json.encode(line) + b"\n")

    def write(self, record: Record) -> None:
        self.put(self._line(record))

    def _line(self, record: Record) -> Line:
        if isinstance(record, Event):
            return self._event(record)
        self._place, self._heads = 0, []
        if isinstance(record, Rollout):
            self.rollouts += 1
            return RolloutLine(record)
        if isinstance(record, DatedAttempt):
            return AttemptLine(record.attempt, record.deadline_at)
        if isinstance(record, Resource):
            return ResourceLine(record)
        return CompletedLine(record.ids) if isinstance(record, Completed) else LedgerLine(record)

    def _event(self, event: Event) -> EventLine:
        shared: Shared | None = None
        short = event
        if isinstance(event, CallEvent):
            short, shared = shorten(event, self._heads)
            self._heads = [*self._heads, head_of(self._place, event)][-_COMPARED:]
        self._place += 1
        if shared is None:
            return EventLine(event)
        return EventLine(short, shared.base, shared.ids, shared.head, shared.tail)


def _records(path: Path) -> Iterator[Record]:
    with path.open("rb") as file:
        place, heads = 0, dict[int, Head]()
        for line in _read(file, path):
            if isinstance(line, EventLine):
                yield _restored(line, place, heads)
                place += 1
                continue
            place, heads = 0, {}
            if isinstance(line, ResourceLine):
                yield line.resource
            elif isinstance(line, RolloutLine):
                yield line.rollout
            elif isinstance(line, AttemptLine):
                yield DatedAttempt(line.attempt, line.deadline_at)
            elif isinstance(line, CompletedLine):
                yield Completed(line.ids)
            elif isinstance(line, LedgerLine):
                yield line.entry


def _restored(line: EventLine, place: int, heads: dict[int, Head]) -> Event:
    event = line.event
    if isinstance(event, CallEvent):
        if line.base is not None:
            shared = Shared(line.base, line.shared_ids, line.shared_head, line.shared_tail)
            event = restore(event, shared, heads[line.base])
        heads[place] = head_of(place, event)
    return event


def _read(file: IO[bytes], path: Path) -> Iterator[Line]:
    for number, text in enumerate(file, 1):
        try:
            yield _decoder.decode(text)
        except msgspec.DecodeError as error:
            raise ConfigError(f"{path}, line {number}, is no line of a run: {error}") from error


def _decoded(text: bytes) -> Line | None:
    """The line; `None`: it is none of ours, such as half of one."""
    try:
        return _decoder.decode(text)
    except msgspec.DecodeError:
        return None


def _check(path: Path) -> str:
    """Look at a file before anything is loaded; return its run."""
    try:
        with path.open("rb") as file:
            line = next(islice(_read(file, path), 1), None)
            header = line if isinstance(line, HeaderLine) else None
            run = records.check_header(
                header and records.Header(header.format, header.version, header.run), path
            )
            last = deque(file, maxlen=1)
    except OSError as error:
        raise ConfigError(f"can't read {str(path)!r}: {error.strerror}") from error
    if not last or not isinstance(_decoded(last[0]), Footer):
        raise ConfigError(f"{str(path)!r} is not whole: its last line is missing; export it again")
    return run
