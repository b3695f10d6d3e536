"""What becomes of each request field: one declared table per dialect.

`docs/reference/gateway-fields.md` is written from these tables, and a test sends a real request for each
of their rows. Invariant: a field that would change the answer is passed on, brought about here, or
refused with the real service's status and code. What no row knows is left out and named, never dropped in silence.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from enum import StrEnum
from typing import Any, NamedTuple, cast

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
    LEFT_OUT = "left out"
    """Nobody here knows it: the engine does not see it, and the attempt's log names it."""


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


def left_out(name: str, note: str, value: str = "") -> Field:
    """A row about what nobody here knows."""
    return Field(name, Handling.LEFT_OUT, note, value)


OTHERS = left_out(
    "any other field", "`gateway.unknown_fields: refuse` refuses it: 400 (`unknown_parameter`)"
)
"""The last row of every table."""


class FieldTable:
    """The rows of one dialect."""

    def __init__(
        self,
        rows: Iterable[Field],
        *,
        tool_keys: Iterable[str] = (),
        idle: Mapping[str, Callable[[Any], bool]] | None = None,
        unknown: str = "Unknown parameter: '{name}'.",
    ) -> None:
        """Make a table.

        Args:
            rows: In the order of the reference. A name with a dot is of a field within an object, whose other
                fields are then unknown ones.
            tool_keys: What is read of a tool's definition. Empty: definitions are not looked at.
            idle: Refused field -> whether a value of it, beside `null` and `[]`, says nothing.
            unknown: How the service words the refusal of a field that it does not know.
        """
        self.rows = tuple(rows)
        self._unknown = unknown
        self._idle = idle or {}
        self._tool_keys = frozenset(tool_keys)
        self._known = {row.name.partition(".")[0] for row in self.rows}
        self._inside: dict[str, set[str]] = {}
        for row in self.rows:
            holder, dot, name = row.name.partition(".")
            if dot:
                self._inside.setdefault(holder, set()).add(name)
        self.accepted = tuple(
            row.name for row in self.rows if row.handling is Handling.ACCEPTED and not row.value
        )
        """Fields that need not reach an engine."""
        self.never = {
            row.name: row for row in self.rows if row.handling is Handling.REFUSED and not row.value
        }
        """Fields that are refused, unless they say nothing; then they need not reach one either."""

    def check(self, fields: Mapping[str, Any]) -> tuple[str, ...]:
        """The paths of what no row knows; what a row refuses whatever its value is refused.

        Raises:
            Refusal: the first such field; `null` and empty lists are the same as leaving a field away.
        """
        unknown = [name for name in fields if name not in self._known]
        for name in self.never:
            if name in fields and not self._says_nothing(name, fields[name]):
                row = self.never[name]
                raise Refusal(row.status, row.code or "", f"'{name}': {row.note}.", param=name)
        for name, inside in self._inside.items():
            value = fields.get(name)
            if isinstance(value, dict):
                unknown += (
                    f"{name}.{one}" for one in cast("dict[str, Any]", value) if one not in inside
                )
        return (*unknown, *self.unknown_of_tools(fields.get("tools")))

    def unknown_of_tools(self, tools: Any, where: str = "tools[]") -> Iterable[str]:
        """What is not read of the definitions of tools, and of those within them, each path once."""
        if not self._tool_keys or not isinstance(tools, list):
            return ()
        found: dict[str, None] = {}
        for one in cast("list[Any]", tools):
            if isinstance(one, dict):
                tool = cast("dict[str, Any]", one)
                if not self._tool_keys.issuperset(tool):
                    keys = (key for key in tool if key not in self._tool_keys)
                    found |= dict.fromkeys(f"{where}.{key}" for key in keys)
                if "tools" in tool:  # a namespace's
                    found |= dict.fromkeys(self.unknown_of_tools(tool["tools"], f"{where}.tools[]"))
        return found

    def refuse(self, name: str) -> Refusal:
        """The refusal of a field that no row knows."""
        return Refusal(400, "unknown_parameter", self._unknown.format(name=name), param=name)

    def _says_nothing(self, name: str, value: Any) -> bool:
        if value in (None, []) or (isinstance(value, msgspec.Raw) and bytes(value) in _NOTHING):
            return True
        return name in self._idle and self._idle[name](value)


_NOTHING = (b"null", b"[]")
