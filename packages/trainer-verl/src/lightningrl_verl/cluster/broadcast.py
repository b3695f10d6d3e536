"""Weights from the first rank to engines on devices of their own, by a broadcast of torch's.

A checkpoint engine of verl's, registered under our name: gloo on a CPU, NCCL on GPUs. (verl's own `nccl` needs CuPy, and
can't be tried without a GPU.) Invariant: every rank goes through all weights, since gathering each is collective; the
first one alone sends.
"""

from __future__ import annotations

import pickle
from collections.abc import Generator, Iterable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import ray
import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import TCPStore
from verl.checkpoint_engine.base import CheckpointEngine
from verl.utils.device import get_device_name

_ALIGNED = 16
"""Bytes at whose multiples a weight begins in a bucket: no dtype needs more."""

_TIMEOUT = timedelta(minutes=10)
"""Longest wait for one bucket."""

_Placed = tuple[str, torch.dtype, torch.Size, int]
"""A weight's name, dtype and shape, and where it begins in its bucket."""


@dataclass(frozen=True)
class Meeting:
    """Where those who take part find each other."""

    host: str
    port: int


class BroadcastEngine(CheckpointEngine):
    """One process' part. The group is made at the first sync, and serves all that follow."""

    def __init__(self, bucket_size: int, is_master: bool = False) -> None:
        """Prepare.

        Args:
            bucket_size: bytes that are sent together; a larger weight goes alone.
            is_master: whether this is the first rank.
        """
        self._bucket_size = bucket_size
        self._is_master = is_master
        # torch's classes of both kinds of group have no base in its type stubs.
        self._store: Any = None
        self._group: Any = None

    def prepare(self) -> Any:
        """On the first rank open the meeting place, and say where it is."""
        if not self._is_master:
            return None
        host = ray.util.get_node_ip_address()
        if self._store is None:
            self._store = TCPStore(
                host, 0, is_master=True, wait_for_workers=False, timeout=_TIMEOUT
            )
        return Meeting(host, self._store.port)

    @classmethod
    def build_topology(
        cls, actor_wg_world_size: int, rollout_world_size: int, metadata: list[Any]
    ) -> tuple[dict[str, list[Any]], dict[str, list[Any]]]:
        """The first rank is the first of the group, the engines' workers follow; other ranks are not in it."""
        size = rollout_world_size + 1
        ranks = ([0] + [-1] * (actor_wg_world_size - 1), list(range(1, size)))
        of_ranks, of_engines = (
            {
                "rank": numbers,
                "size": [size] * len(numbers),
                "meeting": [metadata[0]] * len(numbers),
            }
            for numbers in ranks
        )
        return of_ranks, of_engines

    def init_process_group(  # pyright: ignore[reportIncompatibleMethodOverride] # it is given what `build_topology` says
        self, rank: int, size: int, meeting: Meeting
    ) -> None:
        """Join, unless that was done before; collective for those with a rank."""
        if rank < 0 or self._group is not None:
            return
        if self._store is None:
            self._store = TCPStore(meeting.host, meeting.port, is_master=False, timeout=_TIMEOUT)
        if _device().type == "cuda":
            options = dist.ProcessGroupNCCL.Options()
            options._timeout = _TIMEOUT
            self._group = dist.ProcessGroupNCCL(self._store, rank, size, options)
        else:
            self._group = dist.ProcessGroupGloo(self._store, rank, size, _TIMEOUT)

    def finalize(self) -> None:
        """Nothing: the next sync takes the same group."""

    async def send_weights(
        self,
        weights: Iterable[tuple[str, Tensor]],
        global_steps: int | None = None,  # noqa: ARG002 # verl names it
    ) -> None:
        """Send them, if this is the first rank; else only help to gather them."""
        placed: list[_Placed] = []
        waiting: list[Tensor] = []
        end = 0
        for name, tensor in weights:
            if self._group is None:
                continue
            if placed and end + tensor.nbytes > self._bucket_size:
                self._send(placed, waiting, end)
                placed, waiting, end = [], [], 0
            placed.append((name, tensor.dtype, tensor.shape, end))
            waiting.append(tensor)
            end += -(-tensor.nbytes // _ALIGNED) * _ALIGNED
        if self._group is not None:
            self._send(placed, waiting, end)
            self._send([], [], 0)

    def receive_weights(  # pyright: ignore[reportIncompatibleMethodOverride] # verl's own for colocated ones is a generator too
        self,
        global_steps: int | None = None,  # noqa: ARG002 # verl names it
    ) -> Generator[tuple[str, Tensor]]:
        """What the first rank sends; each is valid until the next is asked for."""
        while True:
            head = torch.empty(2, dtype=torch.int64, device=_device())
            self._broadcast(head)
            of_names, of_weights = head.tolist()
            if of_weights == 0:
                return
            names = torch.empty(of_names, dtype=torch.uint8, device=_device())
            self._broadcast(names)
            bucket = torch.empty(of_weights, dtype=torch.uint8, device=_device())
            self._broadcast(bucket)
            found: list[_Placed] = pickle.loads(
                names.cpu().numpy().tobytes()
            )  # from the first rank
            for name, dtype, shape, start in found:
                part = bucket[start : start + shape.numel() * dtype.itemsize]
                yield name, part.view(dtype).view(shape)

    def _send(self, placed: list[_Placed], weights: list[Tensor], end: int) -> None:
        """A bucket; an empty one is the end."""
        described = bytearray(pickle.dumps(placed))
        self._broadcast(torch.tensor([len(described), end], device=_device()))
        if not placed:
            return
        self._broadcast(torch.frombuffer(described, dtype=torch.uint8).to(_device()))
        bucket = torch.empty(end, dtype=torch.uint8, device=_device())
        for (_, _, _, start), tensor in zip(placed, weights, strict=True):
            part = bucket[start : start + tensor.nbytes].view(tensor.dtype)
            part.view(tensor.shape).copy_(tensor)
        self._broadcast(bucket)

    def _broadcast(self, tensor: Tensor) -> None:
        options = dist.BroadcastOptions()
        options.rootRank = 0
        self._group.broadcast([tensor], options).wait()


def _device() -> torch.device:
    """This process', by verl's platform: a rank may train on the CPU of a machine that has GPUs."""
    return torch.device(get_device_name())
