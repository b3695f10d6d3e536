"""Where commands print."""

from __future__ import annotations

from typing import IO

from rich.console import Console

_WIDE = 160
"""Columns of what is piped elsewhere, where nobody's window is narrow."""


def console(file: IO[str] | None = None) -> Console:
    """A terminal's own width, and a wide one for files and pipes.

    Args:
        file: printed to. `None`: to whatever standard output is at each print.
    """
    found = Console(file=file, highlight=False)
    return found if found.is_terminal else Console(file=file, highlight=False, width=_WIDE)
