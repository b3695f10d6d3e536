"""Settings from the environment; the only reader of `os.environ` besides the runner."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def admin_key() -> str | None:
    """`LIGHTNINGRL_ADMIN_KEY`: what a server demands of those who read and change its store."""
    return os.environ.get("LIGHTNINGRL_ADMIN_KEY") or None


def cache_folder() -> Path:
    """`LIGHTNINGRL_CACHE`, else the user's cache folder of this platform."""
    given = os.environ.get("LIGHTNINGRL_CACHE")
    if given:
        return Path(given)
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "lightningrl"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", Path.home())) / "lightningrl"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lightningrl"
