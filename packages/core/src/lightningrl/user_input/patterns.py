"""Regular expressions that users write."""

from __future__ import annotations

import re
from collections.abc import Sequence

from lightningrl.errors import ConfigError


def compiled(patterns: Sequence[str], *, key: str) -> dict[str, re.Pattern[str]]:
    """Each pattern, ready to be matched; `^` and `$` match at lines.

    Args:
        patterns: as they were written.
        key: where; named where one is wrong.

    Raises:
        ConfigError: one is no regular expression, or matches where nothing is.
    """
    found: dict[str, re.Pattern[str]] = {}
    for one in patterns:
        try:
            found[one] = re.compile(one, re.MULTILINE)
        except re.error as error:
            raise ConfigError(f"{key}: {one!r} is no regular expression: {error}") from error
        if found[one].search(""):
            raise ConfigError(f"{key}: {one!r} matches the empty text; say what it must hold")
    return found
