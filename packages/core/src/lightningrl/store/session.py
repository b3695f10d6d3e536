"""What the operations of the store need of a database: named statements inside a transaction.

`lifecycle`, `event_log`, `ledger`, `reading` and `policies` are written once against `Session`; each
database brings a class of its own. Invariant: a session is used by one thread at a time, and whatever
it runs belongs to the transaction that its owner began.
"""

from __future__ import annotations

import abc
from datetime import datetime
from enum import StrEnum
from typing import Any

import msgspec

from lightningrl.store.compression import Compressor
from lightningrl.store.deltas import Bases
from lightningrl.store.rows import Row, micros

_encoder = msgspec.msgpack.Encoder()


class Wake(StrEnum):
    """What a transaction changed that somebody may wait for."""

    QUEUED = "queued"
    """A rollout can be claimed."""
    ENDED = "ended"
    """A rollout ended."""
    POLICY = "policy"
    """A policy is new or another."""
    GATEWAY = "gateway"
    """A gateway was heard, or says that it ends."""


class Session(abc.ABC):
    """One connection to a database, and the statements that run on it by name."""

    def __init__(self) -> None:
        self._compressor = Compressor()
        self.bases = Bases()
        self.wakes: set[Wake] = set()
        """Filled by operations, emptied by the writer after the commit."""

    @abc.abstractmethod
    def rows(self, name: str, /, **values: Any) -> list[Row]:
        """All rows of the statement `name`."""

    @abc.abstractmethod
    def row(self, name: str, /, **values: Any) -> Row | None:
        """The first row of the statement `name`, or None."""

    @abc.abstractmethod
    def run(self, name: str, /, **values: Any) -> int:
        """Run the statement `name`; return how many rows it changed."""

    @abc.abstractmethod
    def insert(self, name: str, /, **values: Any) -> int | None:
        """Run the INSERT `name` of one row; return the key that it got, None where it was there."""

    @abc.abstractmethod
    def selected(self, names: list[str], values: dict[str, Any]) -> list[Row]:
        """All rows of the statement that the fragments `names` make together."""

    @abc.abstractmethod
    def now(self) -> datetime:
        """The clock by which leases and deadlines are judged."""

    def erase(self) -> None:  # noqa: B027 - a database that can't does nothing
        """Until the transaction ends, overwrite what is deleted; nothing where the database can't."""

    def now_us(self) -> int:
        """`now` in microseconds since 1970."""
        return micros(self.now())

    def packed(self, value: Any) -> bytes:
        """A record or a JSON-like value as a blob."""
        return self._compressor.pack(_encoder.encode(value))
