"""The key of an engine that others have started: it stands in a variable, never in the recipe."""

from __future__ import annotations

import os

from lightningrl.errors import ConfigError


def endpoint_key(where: str, variable: str | None) -> str | None:
    """What the environment's `variable` holds. `None`: the engine asks for no key.

    Args:
        where: the recipe's key that names the variable.
        variable: its name.

    Raises:
        ConfigError: the variable is not set.
    """
    if variable is None:
        return None
    if variable not in os.environ:
        raise ConfigError(f"{where}: the variable {variable!r} is not set")
    return os.environ[variable]
