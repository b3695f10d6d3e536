"""What a process that trains or serves a model sets before torch is loaded.

Invariant: what the user has set in the environment stays.
"""

from __future__ import annotations

import ctypes
import os
import sys

_THRESHOLD = 1 << 30
"""Bytes up to which memory comes from the heap, and of free memory that the heap keeps."""

# glibc's malloc.h
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8


def prepare_process() -> None:
    """Let torch's threads sleep while they wait, and memory be kept; must be called before torch is loaded.

    By default the threads spin, which on a machine whose cores are also wanted by the runners made an update
    of a tiny policy on two threads seven times slower (1.2 s against 0.16 s).
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if sys.platform == "linux" and not any(name.startswith("MALLOC_") for name in os.environ):
        _keep_memory()


def _keep_memory() -> None:
    """Have glibc keep the memory of large tensors instead of giving it back and taking it anew, zeroed, each time.

    Elementwise work on tensors of 3 to 6 MB, on a thread, then took 2.2 CPU ms a round instead of 4.1; huge pages by
    torch's `THP_MEM_ALLOC_ENABLE` gained nothing beside it.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:  # another C library
        return
    for option in (_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD):
        mallopt(option, _THRESHOLD)
    # Of one heap, since those of further threads are small.
    mallopt(_M_ARENA_MAX, 1)
