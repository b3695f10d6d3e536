"""Which chat templates a recipe may name, without torch or transformers."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from lightningrl.errors import ConfigError

HERMES = "hermes"
"""The template that is shipped: ChatML with tools in the Hermes form."""


def template_text(name: str, folder: Path) -> str:
    """The text of a template.

    Args:
        name: `hermes`, or a path.
        folder: what the path is relative to.

    Raises:
        ConfigError: there is no such file, or it can't be read.
    """
    if name == HERMES:
        place = files("lightningrl_verl.pretrained") / "templates" / f"{HERMES}.jinja"
        return place.read_text(encoding="utf-8")
    path = (folder / name).resolve()
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"chat_template: {name!r} is neither {HERMES!r} nor a template that can be read: {error}"
        ) from error
