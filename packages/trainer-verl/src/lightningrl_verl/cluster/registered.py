"""What verl 0.9.1 finds by name once this module is imported: the embedded engine, and how it is given weights.

verl imports it itself where it builds a checkpoint engine (`custom_backend_module`); ranks and driver do before.
Invariant: importing it settles no platform, and twice is the same as once.
"""

from __future__ import annotations

from typing import Any

from verl.checkpoint_engine.base import CheckpointEngineRegistry
from verl.workers.rollout import base
from verl.workers.rollout.replica import RolloutReplica, RolloutReplicaRegistry

from lightningrl_verl.cluster.broadcast import BroadcastEngine
from lightningrl_verl.worker.rollout_config import BROADCAST, TORCH


def _replica() -> type[RolloutReplica]:
    from lightningrl_verl.cluster.torch_replica import TorchReplica

    return TorchReplica


_checkpoint_engines: Any = CheckpointEngineRegistry
_checkpoint_engines.register(BROADCAST)(BroadcastEngine)
RolloutReplicaRegistry.register(TORCH, _replica)
# verl has a table for adapters (`workers/rollout/base.py:89`), and no function that adds to it.
base._ROLLOUT_REGISTRY[(TORCH, "async")] = "lightningrl_verl.cluster.torch_adapter.TorchAdapter"  # pyright: ignore[reportPrivateUsage]
