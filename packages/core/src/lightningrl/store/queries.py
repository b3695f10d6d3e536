"""The named SQL statements that stand in `store/sql/*.sql`.

A statement begins with a line `-- name: NAME` and reaches to the next such line; other comments stay
with the statement that they precede. A name stands once over all files.
"""

from __future__ import annotations

import functools
import re
from importlib import resources
from importlib.resources.abc import Traversable

_NAME = re.compile(r"^-- name: (\w+)\n", re.MULTILINE)


def schema() -> str:
    """The script that makes an empty store."""
    return _folder().joinpath("schema.sql").read_text(encoding="utf-8")


@functools.cache
def queries() -> dict[str, str]:
    """Name -> statement."""
    found: dict[str, str] = {}
    for file in sorted(_folder().iterdir(), key=lambda file: file.name):
        if not file.name.endswith(".sql") or file.name == "schema.sql":
            continue
        parts = _NAME.split(file.read_text(encoding="utf-8"))
        for name, statement in zip(parts[1::2], parts[2::2], strict=True):
            if name in found:
                raise ValueError(f"the query {name!r} stands twice, again in {file.name}")
            found[name] = statement.strip()
    return found


def _folder() -> Traversable:
    return resources.files("lightningrl.store").joinpath("sql")
