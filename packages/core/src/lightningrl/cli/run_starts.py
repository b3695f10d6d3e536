"""How often a run was started, and how each start ended: `starts` of its `run.json`.

Invariant: a start whose end nobody wrote and whose process no longer holds the folder was killed. The next start writes
that down; until then whoever looks tells it from the files.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path

import msgspec

from lightningrl.cli.stored_run import read_origin
from lightningrl.errors import ConfigError
from lightningrl.machine.durable import write_text

_STARTS = "starts"


class How(StrEnum):
    """How a start ended."""

    FINISHED = "finished"
    """All iterations are done."""
    STOPPED = "stopped"
    """By a signal, as of Ctrl-C."""
    GUARD = "guard"
    """A guard stopped it."""
    ERROR = "error"
    KILLED = "killed"
    """Nobody wrote its end: `kill -9`, the machine, or memory."""


class Start(msgspec.Struct, frozen=True, omit_defaults=True):
    """One start of `train` or `sft`."""

    at: str
    """ISO 8601, with its zone."""
    process: int
    how: How | None = None
    """`None`: it runs, or was killed."""
    ended_at: str | None = None
    """Of a killed one when its files last changed."""
    why: str = ""
    """Of a guard and an error their message."""

    @property
    def said(self) -> str:
        """How it ended, in a line for people."""
        if self.how is None:
            return "runs"
        when = f" at {_in_utc(self.ended_at)}" if self.ended_at else ""
        about = " about" if self.how is How.KILLED else ""
        return f"{self.how.value}{about}{when}" + (f": {self.why}" if self.why else "")


def _in_utc(instant: str) -> str:
    """An instant of ISO 8601 as people read it."""
    return f"{datetime.fromisoformat(instant).astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"


def read_starts(folder: Path) -> list[Start]:
    """A run's starts, oldest first, the last one with its end even if it was killed.

    Raises:
        ConfigError: `run.json` can't be read.
    """
    try:
        starts = msgspec.convert(read_origin(folder).get(_STARTS, []), list[Start])
        for one in starts:
            datetime.fromisoformat(one.at)
            datetime.fromisoformat(one.ended_at or one.at)
    except (msgspec.ValidationError, ValueError) as error:
        raise ConfigError(f"{str(folder / 'run.json')!r}: {error}") from error
    if starts and trainer_process(folder) is None:
        starts[-1] = with_end(folder, starts[-1])
    return starts


def with_end(folder: Path, start: Start) -> Start:
    """A start whose process is gone: killed, unless its end was written."""
    if start.how is not None:
        return start
    ended = _last_sign(folder, start.at)
    return msgspec.structs.replace(start, how=How.KILLED, ended_at=ended)


def write_starts(folder: Path, starts: Sequence[Start]) -> None:
    """Put a run's starts in place of those in its `run.json`."""
    origin = read_origin(folder)
    origin[_STARTS] = msgspec.to_builtins(starts)
    write_text(folder / "run.json", json.dumps(origin, indent=2) + "\n")


def trainer_process(folder: Path) -> int | None:
    """The process that trains in `folder` on this machine. `None`: none.

    The lock is looked at and not tried: a trainer that starts meanwhile must get it.
    """
    lock = folder / ".lock"
    try:
        process = int(lock.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    if sys.platform == "linux":
        inode = lock.stat().st_ino
        held = Path("/proc/locks").read_text(encoding="utf-8").splitlines()
        return process if any(_locks(line, inode) for line in held) else None
    try:
        os.kill(process, 0)  # asks whether it is there, and sends nothing
    except ProcessLookupError:
        return None
    except PermissionError:
        return process
    return process


def _locks(line: str, inode: int) -> bool:
    """Whether a line of `/proc/locks` is of that file: `1: FLOCK ADVISORY WRITE 77 fe:00:1234 0 EOF`."""
    return any(part.endswith(f":{inode}") and part.count(":") == 2 for part in line.split())


def _last_sign(folder: Path, since: str) -> str:
    """When one of the files that a trainer keeps writing last changed; no earlier than `since`."""
    paths = (folder / "metrics.jsonl", *folder.glob("store.db*"), *folder.glob("logs/*.log"))
    times = [datetime.fromtimestamp(one.stat().st_mtime, UTC) for one in paths if one.exists()]
    return max([datetime.fromisoformat(since), *times]).isoformat(timespec="seconds")
