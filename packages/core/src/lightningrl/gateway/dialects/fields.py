"""What becomes of each request field: one declared table per dialect.

`docs/reference/gateway-fields.md` is written from these tables, and a test sends a real request for each
of their rows. Invariant: a field that would change the answer is passed on, brought about here, or
refused with the real service's status and code; it is never dropped in silence.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import Any, NamedTuple

import msgspec

from lightningrl.gateway.asgi import Refusal


class Handling(StrEnum):
    """What the gateway does with a field."""

    PASSED = "passed"
    """The engine is asked for it, under its own name for it; what it can't do, it refuses."""
    EMULATED = "emulated"
    """The gateway brings it about; the engine does not see it."""
    ACCEPTED = "accepted"
    """It changes no answer: bookkeeping of the real service, or a hint."""
    REFUSED = "refused"
    """The request is answered by an error."""


class Field(NamedTuple):
    """One row of a table."""

    name: str
    handling: Handling
    note: str
    """How, for the reader of the reference."""
    value: str = ""
    """The values that the row is about, where another row is about the others. Empty: any."""
    status: int = 200
    code: str | None = None

    @property
    def key(self) -> str:
        """What names the row."""
        return f"{self.name}={self.value}" if self.value else self.name


def passed(name: str, note: str, value: str = "") -> Field:
    """A row about what the engine is asked for."""
    return Field(name, Handling.PASSED, note, value)


def emulated(name: str, note: str, value: str = "") -> Field:
    """A row about what the gateway brings about."""
    return Field(name, Handling.EMULATED, note, value)


def accepted(name: str, note: str, value: str = "") -> Field:
    """A row about what changes no answer."""
    return Field(name, Handling.ACCEPTED, note, value)


def refused(name: str, note: str, value: str = "", *, status: int = 400, code: str) -> Field:
    """A row about what is answered by an error."""
    return Field(name, Handling.REFUSED, note, value, status, code)


class FieldTable:
    """The rows of one dialect."""

    def __init__(
        self,
        rows: Iterable[Field],
        *,
        closed: bool = True,
        unknown: str = "Unknown parameter: '{name}'.",
    ) -> None:
        """Make a table.

        Args:
            rows: In the order of the reference.
            closed: Whether a field without a row is refused; else the engine is asked for it.
            unknown: How the service words that refusal.
        """
        self.rows = tuple(rows)
        self.closed = closed
        self._unknown = unknown
        self._known = {row.name.partition(".")[0].partition("[")[0] for row in self.rows}
        self.accepted = tuple(
            row.name for row in self.rows if row.handling is Handling.ACCEPTED and not row.value
        )
        """Fields that need not reach an engine."""
        self.never = {
            row.name: row for row in self.rows if row.handling is Handling.REFUSED and not row.value
        }
        """Fields that are refused, unless they say nothing; then they need not reach one either."""

    def check(self, fields: Mapping[str, Any]) -> None:
        """Refuse what no row knows, and what a row refuses whatever its value.

        Raises:
            Refusal: the first such field; `null` and empty lists are the same as leaving a field away.
        """
        for name, value in fields.items():
            if self.closed and name not in self._known:
                message = self._unknown.format(name=name)
                raise Refusal(400, "unknown_parameter", message, param=name)
            if name in self.never and not _says_nothing(value):
                row = self.never[name]
                raise Refusal(row.status, row.code or "", f"'{name}': {row.note}.", param=name)


def _says_nothing(value: Any) -> bool:
    return value in (None, []) or (isinstance(value, msgspec.Raw) and bytes(value) in _NOTHING)


_NOTHING = (b"null", b"[]")
