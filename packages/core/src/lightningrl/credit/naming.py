"""Credit methods in one line: `gigpo gamma=0.9 normalise=std`, for command lines and tables.

Invariant: `parse_method(method_name(credit, args)) == (credit, args)`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import yaml

from lightningrl.errors import ConfigError

_OPEN, _CLOSE = "[{", "]}"


def method_name(credit: str, args: Mapping[str, Any]) -> str:
    """A method with the arguments that it is given, in their order.

    Args:
        credit: as in `algorithm.credit`.
        args: as in `algorithm.credit_args`.
    """
    return " ".join([credit, *(f"{key}={_told(value)}" for key, value in args.items())])


def parse_method(text: str) -> tuple[str, dict[str, Any]]:
    """The method and its arguments; values are YAML.

    Raises:
        ConfigError: there is no name, or an argument is not of the form key=value.
    """
    credit, *given = _split(text, " ") or [""]
    args: dict[str, Any] = {}
    for one in given:
        key, separator, value = one.partition("=")
        if not separator or not key:
            raise ConfigError(f"{text!r}: {one!r} is not of the form key=value")
        try:
            args[key] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise ConfigError(f"{text!r}: {value!r} is no YAML: {error}") from error
    if not credit or "=" in credit:
        raise ConfigError(f"{text!r} names no credit method; such as 'gigpo gamma=0.9'")
    return credit, args


def split_methods(text: str) -> list[str]:
    """The methods of a text in which commas stand between them; those within brackets and quotes don't count."""
    return _split(text, ",")


def _told(value: Any) -> str:
    """As YAML that reads back as the value."""
    if isinstance(value, str) and not any(one in value for one in ' ,"[]{}'):
        try:
            if yaml.safe_load(value) == value:
                return value
        except yaml.YAMLError:
            pass  # it needs quotes
    return json.dumps(value, separators=(",", ":"))


def _split(text: str, at: str) -> list[str]:
    """The parts of a text that are not empty, without blanks around them."""
    parts, depth, quoted = [""], 0, False
    for one in text:
        quoted = quoted != (one == '"')
        depth += 0 if quoted else (one in _OPEN) - (one in _CLOSE)
        if one == at and not depth and not quoted:
            parts.append("")
        else:
            parts[-1] += one
    return [part.strip() for part in parts if part.strip()]
