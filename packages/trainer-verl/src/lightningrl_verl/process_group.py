"""The process group of one trainer process, without a port.

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


def _stop_process_group() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


@contextmanager
def single_process_environment() -> Generator[None]:
    """Give verl the variables of a group of one, then restore the environment as it was."""
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
