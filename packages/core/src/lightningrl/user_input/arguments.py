"""Arguments that a recipe gives to shipped functions: checked against annotations before anything runs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import msgspec
from msgspec import Meta

from lightningrl.errors import ConfigError
from lightningrl.user_input.names import suggest

Share = Annotated[float, Meta(ge=0.0, le=1.0)]
"""From 0 to 1."""

AtLeastZero = Annotated[float, Meta(ge=0.0)]

AboveZero = Annotated[float, Meta(gt=0.0)]

Count = Annotated[int, Meta(ge=0)]

Positive = Annotated[int, Meta(ge=1)]


def check_arguments(function: Callable[..., Any], given: Mapping[str, Any], where: str) -> None:
    """Refuse values that are of another type than annotated, out of the annotated range, or not finite.

    Args:
        function: or class; annotated with what msgspec understands.
        given: by the name of a parameter that it has.
        where: what stands before the name in an error.

    Raises:
        ConfigError: with the name, what is expected, and the value.
    """
    hints = get_type_hints(function, include_extras=True)
    for name, value in given.items():
        choices = get_args(hints[name]) if get_origin(hints[name]) is Literal else ()
        if choices:
            if value not in choices:
                raise ConfigError(
                    f"{where}{name}: no such value {value!r}.{suggest(str(value), choices)}"
                )
            continue
        try:
            msgspec.convert(value, hints[name])
        except msgspec.ValidationError as error:
            raise ConfigError(f"{where}{name}: {error}; it is {value!r}") from error
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(f"{where}{name}: Expected a finite number; it is {value!r}")
