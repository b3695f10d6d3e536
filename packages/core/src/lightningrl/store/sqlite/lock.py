"""The operating system's lock that makes one process the only writer of a store.

The lock stands beside the store as `<path>.lock`. It dies with its process, however that ends; what
the file says (process id, URL) is only for the message that a second writer gets.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import msgspec

from lightningrl.errors import StoreLocked, StoreUnavailable

if sys.platform == "win32":
    import msvcrt

    _LOCKED_BYTE = 1 << 20
    """Windows forbids reading what is locked, so a byte far behind the text is locked."""

    def _try_lock(descriptor: int) -> bool:
        os.lseek(descriptor, _LOCKED_BYTE, os.SEEK_SET)
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True
else:
    import fcntl

    def _try_lock(descriptor: int) -> bool:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


class _Holder(msgspec.Struct):
    """What the lock's file says."""

    pid: int
    url: str | None = None
    """Where the holder serves the store. None: nowhere (yet)."""


class WriterLock:
    """Held from creation until `release`."""

    def __init__(self, store_path: Path) -> None:
        """Take the lock.

        Raises:
            StoreLocked: another process holds it; the message names its id and URL.
            StoreUnavailable: the file can't be made.
        """
        path = store_path.with_name(store_path.name + ".lock")
        try:
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise StoreUnavailable(
                f"the lock {str(path)!r} can't be made ({error.strerror}); "
                "check that the folder exists and that you may write to it"
            ) from error
        if not _try_lock(self._descriptor):
            holder = _read(self._descriptor)
            os.close(self._descriptor)
            raise StoreLocked(_locked_message(store_path, holder))
        self._write(_Holder(os.getpid()))

    def announce(self, url: str) -> None:
        """Note where this process serves the store."""
        self._write(_Holder(os.getpid(), url))

    def release(self) -> None:
        """Let go of the lock. The file stays: removing it would let two processes lock two files."""
        os.close(self._descriptor)

    def _write(self, holder: _Holder) -> None:
        os.lseek(self._descriptor, 0, os.SEEK_SET)
        os.ftruncate(self._descriptor, 0)
        os.write(self._descriptor, msgspec.json.encode(holder))


def announced_url(store_path: Path) -> str | None:
    """Where the process that took the store last said that it serves it; that may have ended. `None`: it didn't say."""
    try:
        descriptor = os.open(store_path.with_name(store_path.name + ".lock"), os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        holder = _read(descriptor)
    finally:
        os.close(descriptor)
    return None if holder is None else holder.url


def _read(descriptor: int) -> _Holder | None:
    os.lseek(descriptor, 0, os.SEEK_SET)
    try:
        return msgspec.json.decode(os.read(descriptor, 4096), type=_Holder)
    except msgspec.DecodeError:  # the holder is just writing it
        return None


def _locked_message(store_path: Path, holder: _Holder | None) -> str:
    who = "another process" if holder is None else f"process {holder.pid}"
    if holder is None or holder.url is None:
        remedy = "stop it, or open the store read-only"
    else:
        remedy = f"use {holder.url} instead, or stop that process"
    return f"the store {str(store_path)!r} is being written by {who}; {remedy}"
