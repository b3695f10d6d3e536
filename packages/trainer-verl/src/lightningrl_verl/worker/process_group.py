"""The process group of a trainer process: of its own alone, without a port, or one that it shares.

verl 0.9.1 reads rank, world size and a master address from the environment
(`single_controller/base/worker.py:194`) and builds the group over TCP (`utils/distributed.py:83`,
where its backend string "cpu:gloo,cpu:gloo" is also one that torch refuses). Here the group lives
over an in-memory store, so two runs on one machine can't collide, and the variables exist only
while verl's worker is being built. Invariant: the environment is the same after as before.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Generator
from contextlib import contextmanager

import torch.distributed as dist
from torch._C._distributed_c10d import HashStore

_BACKENDS = {"cpu": "gloo", "cuda": "cpu:gloo,cuda:nccl"}

# The master address is read, never dialled: the group exists before verl looks for one.
_SINGLE_PROCESS = {
    "RANK": "0",
    "WORLD_SIZE": "1",
    "LOCAL_RANK": "0",
    "LOCAL_WORLD_SIZE": "1",
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "0",
}

_WRITTEN_BY_VERL = ("REDIS_STORE_SERVER_HOST",)
"""`single_controller/base/worker.py:295`."""


def start_process_group(device: str) -> None:
    """Start this process' group of one for `device` ("cpu" or "cuda"), if it has none yet."""
    if dist.is_initialized():
        return
    dist.init_process_group(_BACKENDS[device], store=HashStore(), rank=0, world_size=1)
    atexit.register(_stop_process_group)


def join_process_group(device: str) -> None:
    """Join the group that the variables RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT name."""
    dist.init_process_group(_BACKENDS[device])
    atexit.register(_stop_process_group)


def largest_of_all_ranks(number: int, group: dist.ProcessGroup) -> int:
    """The largest number that a rank of `group` gives; collective."""
    if dist.get_world_size(group) == 1:
        return number
    found: list[int] = [0] * dist.get_world_size(group)
    dist.all_gather_object(found, number, group)
    return max(found)


def _stop_process_group() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


@contextmanager
def rank_environment() -> Generator[None]:
    """Give verl the variables of a group of one, then restore the environment as it was.

    In a process that has joined a group they are there already, and stay.
    """
    if dist.is_initialized() and dist.get_world_size() > 1:
        yield
        return
    names = (*_SINGLE_PROCESS, *_WRITTEN_BY_VERL)
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(_SINGLE_PROCESS)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is not None:
                os.environ[name] = value
            else:
                os.environ.pop(name, None)
