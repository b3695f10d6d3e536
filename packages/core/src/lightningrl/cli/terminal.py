"""Where commands print."""

from __future__ import annotations

from rich.console import Console

_WIDE = 160
"""Columns of what is piped elsewhere, where nobody's window is narrow."""


def console() -> Console:
    """Standard output: a terminal's own width, and a wide one for files and pipes."""
    found = Console(highlight=False)
    return found if found.is_terminal else Console(highlight=False, width=_WIDE)
