"""What is wrong with a request, said as the real service says it.

Invariant: the checks here raise nothing but `Malformed`, whatever JSON value they are given.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

Object = Mapping[str, Any]
"""A decoded JSON object."""

_KINDS: tuple[tuple[type, str], ...] = (
    (bool, "a boolean"),
    (int, "an integer"),
    (float, "a decimal"),
    (str, "a string"),
    (list, "an array"),
    (dict, "an object"),
)


class Malformed(ValueError):
    """A request that no real service would accept."""

    def __init__(
        self, message: str, *, param: str, code: str = "invalid_value", status: int = 400
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        """Path of the field at fault: `input[0].type`."""
        self.code = code
        self.status = status


def kind(value: Any) -> str:
    """What sort of JSON value this is, with its article."""
    return next((name for one, name in _KINDS if isinstance(value, one)), "null")


def wrong_type(value: Any, expected: str, param: str) -> Malformed:
    """A value has the wrong type."""
    message = f"Invalid type for '{param}': expected {expected}, but got {kind(value)} instead."
    return Malformed(message, param=param, code="invalid_type")


def text_field(holder: Object, name: str, where: str) -> str:
    """A string that must be there."""
    param = f"{where}.{name}"
    if name not in holder:
        raise missing(param)
    value = holder[name]
    if not isinstance(value, str):
        raise wrong_type(value, "a string", param)
    return value


def missing(param: str) -> Malformed:
    """A field is not there that must be."""
    message = f"Missing required parameter: '{param}'."
    return Malformed(message, param=param, code="missing_required_parameter")


def unknown_value(value: Any, supported: Sequence[str], param: str) -> Malformed:
    """A value is none of `supported`."""
    names = ", ".join(f"'{one}'" for one in supported)
    shown = value if isinstance(value, str) else kind(value)
    return Malformed(f"Invalid value: '{shown}'. Supported values are: {names}.", param=param)


def objects(value: Any, where: str) -> list[Object]:
    """A list of JSON objects."""
    if not isinstance(value, list):
        raise wrong_type(value, "an array of objects", where)
    for place, one in enumerate(cast("list[Any]", value)):
        if not isinstance(one, dict):
            raise wrong_type(one, "an object", f"{where}[{place}]")
    return cast("list[Object]", value)
