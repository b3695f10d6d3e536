"""A start of a run is written down when it begins and when it ends, with how it ended."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Generator
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from lightningrl.cli.run_starts import How, Start, read_starts, with_end, write_starts
from lightningrl.errors import GuardTripped, LightningError

_LONGEST = 2000
"""Characters of an error that are kept."""


@contextlib.contextmanager
def noted_start(folder: Path) -> Generator[None]:
    """Note a start in the folder's `run.json`, and its end by how the body ends.

    This process must hold the folder: then a start before it without an end was killed, and is noted so.
    """
    before = [with_end(folder, one) for one in read_starts(folder)]
    start = Start(at=_now(), process=os.getpid())
    write_starts(folder, [*before, start])
    how, why = How.FINISHED, ""
    try:
        yield
    except (asyncio.CancelledError, KeyboardInterrupt):
        how = How.STOPPED
        raise
    except GuardTripped as error:
        how, why = How.GUARD, str(error)
        raise
    except Exception as error:
        how = How.ERROR
        why = (
            str(error) if isinstance(error, LightningError) else f"{type(error).__name__}: {error}"
        )
        raise
    finally:
        ended = msgspec.structs.replace(start, how=how, ended_at=_now(), why=why[:_LONGEST])
        write_starts(folder, [*before, ended])


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
