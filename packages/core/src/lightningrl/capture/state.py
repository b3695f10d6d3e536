"""The state in which the agent decides next, where it knows better than its messages tell.

Invariant: outside a rollout this does nothing, so that the same file runs in production.
"""

from __future__ import annotations

import hashlib
from urllib.parse import quote

from lightningrl.capture.context import current

_LONGEST_QUOTED = 256


def state(key: str | None) -> None:
    """Say in which state the rollout is from here on: credit compares decisions that were taken in equal ones.

    It holds for every model call that is made after it in the rollout, by whatever agent, until it is said
    again. For agents in an environment whose messages don't tell its states apart, or tell too much.

    Args:
        key: equal in equal states, such as a position or a digest of all that matters; one that needs more
            than 256 bytes in a URL is recorded as its digest. `None`: from here on the messages tell again.

    Raises:
        TypeError: `key` is no text.
        ValueError: `key` is empty, or has characters that can't be printed.
    """
    context = current()
    if context is None:
        return
    if key is not None:
        if not isinstance(key, str):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(f"state() takes a text or None, not {type(key).__name__}")
        if not key or not key.isprintable():
            raise ValueError(f"state({key!r}): a state's key is one or more printable characters")
        if len(quote(key)) > _LONGEST_QUOTED:
            key = hashlib.sha256(key.encode()).hexdigest()
    context.state = key
