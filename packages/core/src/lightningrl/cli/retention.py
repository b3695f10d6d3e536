"""What is kept and what is deleted by age and size, as commands are told it."""

from __future__ import annotations

import re

import click

from lightningrl.errors import ConfigError
from lightningrl.schema import Mode
from lightningrl.store.base import Retention

MODES = click.Choice([mode.value for mode in Mode])

_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_AGE = re.compile(r"(\d+(?:\.\d+)?)([smhd])")


def retention(
    older_than: str | None, down_to: int | None, modes: tuple[str, ...], prefix: str = "--"
) -> Retention | None:
    """The rule that the options of a command make; `None` where nothing is to be deleted.

    Args:
        older_than: an age such as `90m` or `7d`.
        down_to: bytes.
        modes: those whose rollouts may be deleted; empty means all.
        prefix: how the command's options begin, for messages.

    Raises:
        ConfigError: an age can't be read, or there are modes and nothing else.
    """
    if older_than is None and down_to is None:
        if modes:
            raise ConfigError(f"{prefix}mode goes with {prefix}older-than or {prefix}down-to")
        return None
    age = None
    if older_than is not None:
        found = _AGE.fullmatch(older_than)
        if found is None:
            raise ConfigError(
                f"{prefix}older-than {older_than!r} is no age; write 30s, 90m, 12h or 7d"
            )
        age = float(found[1]) * _UNITS[found[2]]
    chosen = tuple(Mode(one) for one in modes) or tuple(Mode)
    return Retention(modes=chosen, max_age_seconds=age, max_bytes=down_to)
