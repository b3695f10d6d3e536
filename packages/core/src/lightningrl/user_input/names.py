"""Unknown names are errors that suggest the nearest valid one."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def suggest(name: str, valid: Iterable[str]) -> str:
    """A clause for an error message: the nearest of `valid`, and all of them where few.

    Returns an empty string when `valid` is empty.
    """
    names = sorted(valid)
    if not names:
        return ""
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    listing = f" Valid: {', '.join(names)}." if len(names) <= 30 else ""
    return hint + listing
