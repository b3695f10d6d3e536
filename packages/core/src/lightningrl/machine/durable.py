"""Files and folders that are whole or absent, whatever is killed when.

Invariant: what has its final name is complete and on disk: it was written under another name, synced, and
renamed.
"""

from __future__ import annotations

import os
from pathlib import Path


def publish(draft: Path, path: Path) -> None:
    """Sync a file or folder with all that it holds, and give it its final name.

    A file replaces one of that name.

    Raises:
        OSError: `path` is a folder that is not empty; `draft` stays.
    """
    for inner in draft.rglob("*"):
        sync(inner)
    sync(draft)
    draft.replace(path)
    sync(path.parent)


def write_text(path: Path, text: str) -> None:
    """Replace a file whole."""
    draft = path.with_name(f".{path.name}.new")
    draft.write_text(text, encoding="utf-8")
    publish(draft, path)


def sync(path: Path) -> None:
    """Return once a file or folder, as it is now, survives a power cut.

    Raises:
        OSError: it can't be opened or written.
    """
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
