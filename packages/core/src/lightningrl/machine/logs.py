"""How a process of ours logs: one line a record, for people or as JSON for machines.

Invariant: whatever a record carries as `extra={"fields": {...}}` is in its JSON line under its own name.
"""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from typing import Any, Literal

import msgspec

LogFormat = Literal["text", "json"]


class JsonFormatter(logging.Formatter):
    """Formats a record as one JSON object: `at`, `level`, `logger`, `message`, its fields, `error`."""

    def format(self, record: logging.LogRecord) -> str:
        """See the class."""
        line: dict[str, Any] = {
            "at": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return msgspec.json.encode(line).decode()


def configure_logs(level: str, form: LogFormat) -> None:
    """Log records of `level` and above to standard error; replaces what was configured before.

    Args:
        level: A name of the standard library's: `debug`, `info`, `warning`, `error`.
        form: `text` for people, `json` for machines.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(
        JsonFormatter()
        if form == "json"
        else logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s")
    )
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
