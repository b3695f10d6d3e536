"""The Hugging Face folder of a model that was located: converted, and with the chat template that is wanted.

Invariant: equal sources and templates give equal folders, built once; a folder of the user's own that needs
neither is used where it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightningrl.errors import ConfigError
from lightningrl.settings import cache_folder
from lightningrl_verl.pretrained.record import read_record
from lightningrl_verl.pretrained.reference import Source


@dataclass(frozen=True, slots=True)
class Template:
    """A chat template to put in place of the model's own."""

    name: str
    """As the recipe calls it."""
    text: str


@dataclass(frozen=True, slots=True)
class Prepared:
    """A model that can be loaded."""

    source: Source
    path: Path
    """Hugging Face folder."""
    record: Mapping[str, Any]
    """What its record says; empty where it has none."""
    built: bool
    """Whether this call converted it."""


def prepare(source: Source, template: Template | None = None) -> Prepared:
    """Return the folder of a model; a conversion takes about a minute, once.

    Raises:
        ConfigError: the model can't be converted, or a check of its tokenizer or template fails.
        RunError: a folder in the cache is damaged.
    """
    root = cache_folder() / "models"
    path, built = source.path, False
    if source.is_gguf:
        # Only now: torch and transformers.
        from lightningrl_verl.pretrained.convert import convert

        converted = convert(source.path, root, licence=source.licence)
        path, built = converted.path, converted.built
        if template is None and not (path / "chat_template.jinja").is_file():
            raise ConfigError(
                f"{source.reference!r} has no chat template; give one by 'chat_template', such as 'hermes'"
            )
    if template is not None:
        from lightningrl_verl.pretrained.chat_template import with_template

        path = with_template(path, template.name, template.text, root).path
    return Prepared(source, path, read_record(path), built)


def summary(prepared: Prepared) -> str:
    """One line for people: where it came from, licence, size, digest, and how it differs from the published one."""
    record = prepared.record
    parts = [prepared.source.origin]
    if prepared.source.is_gguf:
        file: Mapping[str, Any] = record["file"]
        parts += [
            f"{record['parameters']:,} parameters",
            f"licence {record['licence'] or 'not told'}",
            f"{file['bytes']:,} bytes",
            f"sha256 {file['sha256'][:16]}",
            *([str(record["note"])] if record["note"] else []),
        ]
    if "chat_template" in record:
        parts.append(f"chat template {record['chat_template']!r}")
    how = "converted to" if prepared.built else "found in"
    return f"model {prepared.source.reference!r}: {', '.join(parts)}; {how} {prepared.path}"
