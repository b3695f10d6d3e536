"""The embedded engine as a replica that verl manages: it takes vLLM's place on machines without a GPU.

Invariant: a server's address is that of its machine as Ray knows it; of a Ray that a run started, loopback.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import ray
import torch
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from torch import Tensor
from verl.checkpoint_engine.base import CheckpointEngineWorker
from verl.single_controller.ray import RayClassWithInitArgs
from verl.workers.rollout.replica import RolloutReplica

from lightningrl_verl.cluster.buckets import BucketedWeightReceiver
from lightningrl_verl.engine.load import EngineSettings, load_engine
from lightningrl_verl.engine.server import serve_engine
from lightningrl_verl.worker.rollout_config import TORCH
from lightningrl_verl.worker.workers import select_device

_CONCURRENCY = 4
"""Calls of one server: it answers that it lives while it takes weights."""


def server_name(replica: int) -> str:
    """The name under which Ray knows an engine's server, in the way of verl's own."""
    return f"{TORCH}_server_{replica}_0"


class TorchServer:
    """An actor of Ray with one engine and its port."""

    def __init__(self, model: str, settings: Mapping[str, Any]) -> None:
        """Load the model's weights, and serve them.

        Args:
            model: Hugging Face folder.
            settings: verl's `rollout.custom`, as `rollout_config` writes it.
        """
        select_device("cpu")
        engine = msgspec.convert(settings["engine"], EngineSettings)
        # Of no version: it serves nobody before the first sync.
        self._engine = load_engine(Path(model), engine, version=-1)
        self._engine.start()
        self._host = ray.util.get_node_ip_address()
        self._server = serve_engine(
            self._engine,
            model_name=settings["name"],
            parser=settings["tool_parser"],
            host=self._host,
        )

    def get_server_address(self) -> tuple[str, int]:
        """Host and port."""
        return self._host, int(self._server.url.rpartition(":")[2])

    def sleep(self) -> None:
        """Give the memory of weights, keys and values back."""
        self._engine.sleep()

    def wake_up(self, tags: list[str]) -> None:
        """Take the memory of `weights` again, or serve again with `kv_cache`."""
        if "weights" in tags:
            self._engine.allocate_weights()
        if "kv_cache" in tags:
            self._engine.wake_up()

    def update_weights(self, socket: str, version: int) -> None:
        """Receive weights, and replace the engine's by them."""
        found: list[tuple[str, Tensor]] = []

        def keep(weights: list[tuple[str, Tensor]], _: bool) -> None:
            # The memory that they came in is written anew by the next ones.
            found.extend((name, tensor.clone()) for name, tensor in weights)

        receiver = BucketedWeightReceiver(socket, torch.device("cpu"), use_shm=True)
        receiver.receive_weights(keep)
        self._engine.swap_weights(found, version)


class TorchReplica(RolloutReplica):
    """One server, on the machine of the rank or worker that it goes with."""

    async def launch_servers(self) -> None:
        """Start it."""
        worker: Any
        (worker,) = self.workers
        node = await worker.__ray_call__.remote(
            lambda _: ray.get_runtime_context().get_node_id()  # pyright: ignore[reportUnknownLambdaType]
        )
        server: Any = ray.remote(TorchServer)
        handle = server.options(
            name=server_name(self.replica_rank),
            max_concurrency=_CONCURRENCY,
            scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False),
        ).remote(self.model_config.path, self.config.custom)
        host, port = await handle.get_server_address.remote()
        self.servers = [handle]
        self._server_handle = handle
        self._server_address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    def get_ray_class_with_init_args(self) -> RayClassWithInitArgs:
        """As the base class, with a worker that knows the CPU."""
        worker: Any = ray.remote(_TorchWorker)
        return RayClassWithInitArgs(
            worker,
            rollout_config=self.config,
            model_config=self.model_config,
            replica_rank=self.replica_rank,
        )

    async def abort_all_requests(self, reject_request: bool = False) -> None:
        """Nothing: the gateway has drained them, and weights are swapped between two steps."""

    async def resume_generation(self) -> None:
        """Nothing: it went on all the time."""

    async def release_kv_cache(self) -> None:
        """Nothing: an engine with a device of its own keeps its memory."""

    async def resume_kv_cache(self) -> None:
        """Nothing."""


class _TorchWorker(CheckpointEngineWorker):
    """Receives weights for an engine that shares no device with a rank."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        select_device("cpu")
        super().__init__(*arguments, **named)
