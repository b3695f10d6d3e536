"""How a process that has weights speaks with an embedded engine that verl manages; verl's `ServerAdapter` for it.

Weights travel as they do to vLLM where devices share no memory: in shared memory, by verl's own sender.
Invariant: all of a rank's weights are gathered even where it sends none, since gathering is collective.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Generator
from typing import Any

import ray
from torch import Tensor
from verl.workers.rollout.base import BaseRollout

from lightningrl_verl.cluster.buckets import BucketedWeightSender
from lightningrl_verl.cluster.torch_replica import server_name


class TorchAdapter(BaseRollout):
    """One rank's view of the engine beside it. Of an engine without tensor parallelism there is one rank each."""

    def __init__(self, *arguments: Any, replica_rank: int = -1, **named: Any) -> None:
        """Find out which engine it is; it need not run yet.

        Args:
            arguments: verl's.
            replica_rank: the engine's number. -1: this rank's.
            named: verl's.
        """
        super().__init__(*arguments, **named)
        self.replica_rank = int(os.environ["RANK"]) if replica_rank == -1 else replica_rank
        self.is_leader_rank = True

    async def resume(self, tags: list[str]) -> None:
        """Wake the engine up: its weights, or its keys and values."""
        await self._server().wake_up.remote(tags)

    async def release(self) -> None:
        """Put the engine to sleep."""
        await self._server().sleep.remote()

    async def update_weights(
        self,
        weights: Generator[tuple[str, Tensor]],
        wire_format: str = "named_tensors",
        global_steps: int | None = None,
        **_: Any,
    ) -> None:
        """Have the engine replace its weights.

        Args:
            weights: whole, by their Hugging Face names.
            wire_format: whole tensors are the only one.
            global_steps: the version.
        """
        assert wire_format == "named_tensors"
        bucket_megabytes = self.config.checkpoint_engine.update_weights_bucket_megabytes
        # A folder of its own: clusters that runs start beside each other number jobs and engines alike.
        with tempfile.TemporaryDirectory(prefix="lrl-") as folder:
            socket = f"ipc://{folder}/weights"
            taken = self._server().update_weights.remote(socket, global_steps)
            sender = BucketedWeightSender(socket, bucket_megabytes, use_shm=True)
            await sender.async_send_weights(weights)
            await taken

    def _server(self) -> Any:
        return ray.get_actor(server_name(self.replica_rank))
