"""What kind of store a URL names."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path

from lightningrl.errors import ConfigError


class Kind(StrEnum):
    """The implementations of the contract."""

    SQLITE = "sqlite"
    POSTGRES = "postgres"
    HTTP = "http"


_SCHEMES = {
    "sqlite": Kind.SQLITE,
    "postgresql": Kind.POSTGRES,
    "postgres": Kind.POSTGRES,
    "http": Kind.HTTP,
    "https": Kind.HTTP,
}


def kind_of(url: str | Path) -> Kind:
    """The kind of store at `url`.

    Raises:
        ConfigError: `url` has a scheme that no store has.
    """
    scheme, colon, _ = str(url).partition(":")
    # A single letter is a drive of Windows.
    if isinstance(url, Path) or not colon or len(scheme) == 1:
        return Kind.SQLITE
    if scheme not in _SCHEMES:
        raise ConfigError(
            f"no store has URLs that begin with {scheme!r}; use sqlite:PATH, a path, "
            "postgresql://HOST/DATABASE, or http(s)://HOST"
        )
    return _SCHEMES[scheme]


def path_of(url: str | Path) -> Path:
    """The file that the URL of an SQLite store names."""
    text = str(url)
    return Path(text.removeprefix("sqlite:") if not isinstance(url, Path) else text)
