"""Where each screen is. Names and ids are in the query, where any character may stand."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from urllib.parse import quote_plus, urlencode

Value = str | int | Sequence[str] | None


def address(screen: str, /, **query: Value) -> str:
    """The address of a screen: `/screen?...`; what is `None` or empty is left out."""
    pairs = [
        (name, str(one))
        for name, value in query.items()
        if value is not None and value != ""
        for one in ([value] if isinstance(value, str | int) else value)
    ]
    return f"/{screen}" + (f"?{urlencode(pairs)}" if pairs else "")


def of_rollout(run: str, ident: str) -> str:
    """The address of a rollout. A page of an iteration has thousands, so it is made without `address`'s loop."""
    return f"/rollout?run={_quoted(run)}&id={quote_plus(ident)}"


_quoted = functools.lru_cache(maxsize=64)(quote_plus)


def changed(screen: str, query: Mapping[str, Value], /, **changes: Value) -> str:
    """The address of a screen as it is, but for `changes`."""
    return address(screen, **{**query, **changes})
