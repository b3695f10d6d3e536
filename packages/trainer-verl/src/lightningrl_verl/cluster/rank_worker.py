"""The process of one rank: an actor of Ray, in verl's worker group, that holds shards of models by name.

Invariant: all ranks of a group make the same calls in the same order, as collectives demand.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from verl.single_controller.base import Worker, decorator

from lightningrl.recipe import Critic
from lightningrl_verl.worker.backend_config import BackendConfig
from lightningrl_verl.worker.critic_rank import CriticRank
from lightningrl_verl.worker.policy_rank import PolicyRank
from lightningrl_verl.worker.process_group import join_process_group
from lightningrl_verl.worker.workers import select_device

# verl adds the members of its enumeration at run time.
_dispatch: Any = decorator.Dispatch
_to_all: Any = decorator.register(dispatch_mode=_dispatch.ONE_TO_ALL)
_to_each: Any = decorator.register(dispatch_mode=_dispatch.DP_COMPUTE)
_to_all_at_once: Any = decorator.register(dispatch_mode=_dispatch.ONE_TO_ALL, blocking=False)
_to_each_at_once: Any = decorator.register(dispatch_mode=_dispatch.DP_COMPUTE, blocking=False)
"""As the others, but they return Ray's references: engines have their part in the call."""


class RankWorker(Worker):
    """One rank of every model of a run. verl's worker group calls its registered methods."""

    def __init__(self, device: str, threads: int) -> None:
        """Join the process group that the worker group has set in the environment.

        Args:
            device: "cpu" or "cuda".
            threads: torch's, on a CPU.
        """
        select_device(device)
        super().__init__()
        torch.set_num_threads(threads)
        join_process_group(device)
        self._models: dict[str, PolicyRank | CriticRank] = {}

    @_to_all
    def policy(self, name: str, config: BackendConfig) -> None:
        """Load this rank's shard of a policy."""
        # Only now: verl's registries must not meet a platform that is not ours.
        from lightningrl_verl.cluster import registered

        del registered
        self._models[name] = PolicyRank(config)

    @_to_all
    def critic(self, name: str, config: BackendConfig, critic: Critic) -> None:
        """Load this rank's shard of a critic."""
        self._models[name] = CriticRank(config, critic)

    @_to_all
    def call(self, name: str, method: str, arguments: tuple[Any, ...]) -> Any:
        """Call a method of a model; only the first rank returns what it returns."""
        result = getattr(self._models[name], method)(*arguments)
        return result if dist.get_rank() == 0 else None

    @_to_each
    def share(self, name: str, method: str, share: Any) -> Any:
        """Call a method of a model with what is this rank's alone."""
        return getattr(self._models[name], method)(share)

    @_to_all_at_once
    def send_weights(self, name: str, version: int, mode: str) -> None:
        """Send a policy's weights to its engines."""
        self._policy(name).send_weights(version, mode)

    @_to_each_at_once
    def checkpoint_engine(self, name: str, method: str, **arguments: Any) -> Any:
        """Call a method of a policy's checkpoint engine."""
        return self._policy(name).checkpoint_engine(method, **arguments)

    def _policy(self, name: str) -> PolicyRank:
        model = self._models[name]
        assert isinstance(model, PolicyRank)
        return model

    @_to_all
    def drop(self, name: str) -> None:
        """Let go of a model."""
        self._models.pop(name).close()

    @_to_all
    def ping(self) -> None:
        """Answer."""
