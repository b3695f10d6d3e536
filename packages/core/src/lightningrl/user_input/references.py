"""`module:attribute` references, as recipes name the user's functions."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

from lightningrl.errors import ConfigError
from lightningrl.user_input.names import suggest


def load_object(reference: str, *, what: str, folder: Path | None = None) -> Any:
    """Import what `reference` (`package.module:attribute`) names.

    Args:
        reference: the text from the recipe.
        what: the recipe's key, for error messages.
        folder: put first on the import path, so that modules beside a recipe are found.

    Raises:
        ConfigError: the text has another form, the module doesn't exist, or has no such attribute.
            An exception raised *by* the module while it is imported passes unchanged.
    """
    module_name, separator, attribute = reference.partition(":")
    if not separator or not module_name or not attribute:
        raise ConfigError(f"{what}: {reference!r} is not of the form 'package.module:attribute'")
    if folder is not None and str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not (module_name + ".").startswith(error.name + "."):
            raise
        raise ConfigError(
            f"{what}: there is no module {error.name!r} (in {reference!r})"
        ) from error
    for part in attribute.split("."):
        if not hasattr(found, part):
            names = [name for name in vars(found) if not name.startswith("_")]
            raise ConfigError(
                f"{what}: {module_name!r} has no attribute {part!r}.{suggest(part, names)}"
            )
        found = getattr(found, part)
    return found
