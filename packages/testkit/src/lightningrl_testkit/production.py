"""A process in production, as tests need it: what it records is read by another reader of its store.

Invariant: after `unrecorded` the process records as little as before it.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import lightningrl
from lightningrl.recorder import Recorder, process
from lightningrl.store import RolloutQuery, Store, open_store
from lightningrl.traces import AttemptRecord, read_attempts


@contextmanager
def unrecorded(monkeypatch: pytest.MonkeyPatch) -> Generator[None]:
    """Run the block in a process that has not called `record`; what it records ends with the block."""
    monkeypatch.delenv("LIGHTNINGRL_SERVER", raising=False)
    monkeypatch.setattr(process, "_called", False)
    monkeypatch.setattr(process, "_recorder", None)
    yield
    recorder = process.active()
    if recorder is not None:
        recorder.close()
    process.uninstall_adapters()


def begin(store: Path | str, **options: Any) -> Recorder:
    """`record`, where there is something to record to."""
    recorder = lightningrl.record(store, **options)
    assert recorder is not None
    return recorder


def begin_alone(store: Path | str, **options: Any) -> Recorder:
    """The same with no adapter installed: what is recorded is what the test says."""
    return begin(store, install_adapters=False, **options)


async def live_records(store: Store) -> list[AttemptRecord]:
    """What a store has of the run `live`, oldest first."""
    found = await read_attempts(store, await store.rollouts(RolloutQuery(run="live")))
    return [one for [one] in found]


async def read(path: Path) -> list[AttemptRecord]:
    """The same of a file that another process may be writing."""
    store = open_store(path, read_only=True)
    try:
        return await live_records(store)
    finally:
        await store.close()


def written_bytes(path: Path) -> bytes:
    """Everything that a store wrote, its write-ahead log included."""
    return b"".join(one.read_bytes() for one in path.parent.glob(f"{path.name}*"))
