"""One rank's part of a critic: verl's value model, with its shard of weights and optimiser.

All methods are collective: every rank calls them in the same order.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from safetensors.torch import save_file

from lightningrl.recipe import Critic
from lightningrl_verl.worker.backend_config import BackendConfig, compose_critic_config
from lightningrl_verl.worker.batch import FloatArray
from lightningrl_verl.worker.rank_state import load_state, restore_whole, save_state
from lightningrl_verl.worker.workers import critic_worker, schedule_learning_rate, select_device

if TYPE_CHECKING:
    from tensordict import TensorDict

_WHOLE = "whole"
"""Folder of a checkpoint in which the critic's weights stand unsharded."""


class CriticRank:
    """A value model and its optimiser on one rank."""

    def __init__(self, config: BackendConfig, critic: Critic) -> None:
        """Load the policy's initial weights under a new head, whose values are 0.

        Raises:
            ConfigError: the device is absent, or verl already runs on another.
        """
        self._device = config.device
        select_device(config.device)
        torch.manual_seed(config.seed)
        self._worker = critic_worker(compose_critic_config(config, critic), config.device)
        schedule_learning_rate(self._worker.engine, lambda _: 1.0)

    def values(self, batch: TensorDict) -> FloatArray:
        """Of each token's successor, rows end to end."""
        valued: Any = self._worker.infer_batch(batch)
        return valued["values"].values().float().numpy(force=True)

    def update(self, batch: TensorDict) -> dict[str, Any]:
        """Train on this rank's rows; return verl's metrics of all ranks."""
        measured: Any = self._worker.train_mini_batch(batch)
        return dict(measured["metrics"])

    def save(self, directory: Path) -> None:
        """Write this rank's shard, and together with the others the weights as a whole."""
        from verl.utils.fsdp_utils import get_fsdp_full_state_dict

        save_state(self._worker, directory)
        whole: dict[str, Any] = get_fsdp_full_state_dict(self._worker.engine.module)  # pyright: ignore[reportAssignmentType] - tensors by name
        if dist.get_rank() == 0:
            (directory / _WHOLE).mkdir()
            separate = {name: one.contiguous().clone() for name, one in whole.items()}
            save_file(separate, directory / _WHOLE / "model.safetensors")
        dist.barrier()

    def load(self, directory: Path) -> bool:
        """Restore this rank's shard of weights and optimiser, and the random states.

        Returns:
            False if the checkpoint is of another number of ranks: then the optimiser's moments are new.

        Raises:
            RunError: `directory` holds no checkpoint.
        """
        if load_state(self._worker, directory):
            return True
        restore_whole(self._worker.engine, directory, directory / _WHOLE)
        return False

    def close(self) -> None:
        """Let go of the weights; the rank can't be used afterwards."""
        del self._worker
        if self._device == "cuda":
            torch.cuda.empty_cache()
