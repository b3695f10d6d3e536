"""What a checkpoint keeps of each rank, and how it is read by another number of ranks.

verl writes one file a rank for weights, optimiser, and schedule with random states, named by the number of
ranks. Of a single rank the weights are those of the export. Invariant: a checkpoint is restored exactly on the
number of ranks that wrote it; on another number the weights are exact, the schedule goes on, and the optimiser's
moments begin anew.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import load_file

from lightningrl.errors import RunError
from lightningrl_verl.machine.quiet import quiet


def save_state(worker: Any, directory: Path) -> None:
    """Write a worker's shard in place; make the folder atomic by renaming it."""
    with quiet():
        worker.save_checkpoint(str(directory))


def save_moments(engine: Any, directory: Path) -> None:
    """Write what verl writes beside weights, of the only rank: optimiser, schedule, random states."""
    directory.mkdir(parents=True, exist_ok=True)
    torch.save(engine.optimizer.state_dict(), directory / "optim_world_size_1_rank_0.pt")
    extra = {
        "lr_scheduler": engine.lr_scheduler.state_dict(),
        "rng": engine.checkpoint_manager.get_rng_state(),
    }
    torch.save(extra, directory / "extra_state_world_size_1_rank_0.pt")


def load_state(worker: Any, directory: Path) -> bool:
    """Restore a worker's shard, its learning rate, and the process' random states.

    The worker's configuration says whether weights are among them.

    Returns:
        False, with nothing restored, if the checkpoint is of another number of ranks.

    Raises:
        RunError: `directory` holds no checkpoint.
    """
    size = dist.get_world_size()
    if _ranks_of(directory) != size:
        return False
    with quiet():
        worker.load_checkpoint(str(directory))
    return True


def restore_whole(engine: Any, directory: Path, weights: Path) -> None:
    """Restore what another number of ranks wrote: whole weights, and the schedule.

    Args:
        engine: verl's.
        directory: the checkpoint.
        weights: folder of `*.safetensors` under the model's own names; of tied weights one is enough.

    Raises:
        RunError: a weight is missing.
    """
    restore_weights(engine, weights)
    name = f"extra_state_world_size_{_ranks_of(directory)}_rank_0.pt"
    extra = torch.load(directory / name, weights_only=False)
    engine.lr_scheduler.load_state_dict(extra["lr_scheduler"])
    for group, rate in zip(
        engine.optimizer.param_groups, engine.lr_scheduler.get_last_lr(), strict=True
    ):
        group["lr"] = rate


def restore_weights(engine: Any, weights: Path) -> None:
    """Restore whole weights from a folder of `*.safetensors`, as `restore_whole`.

    Raises:
        RunError: a weight is missing.
    """
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict

    first = dist.get_rank() == 0
    state: dict[str, Any] = {}
    if first:
        for path in sorted(weights.glob("*.safetensors")):
            state |= load_file(path)
        _complete(engine.module, state, weights)
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
    set_model_state_dict(engine.module, state, options=options)


def _complete(module: Any, state: dict[str, Any], weights: Path) -> None:
    """Give tied weights that the export left out the values of those that they are tied to."""
    tied: dict[str, str] = getattr(module, "all_tied_weights_keys", None) or {}
    for target, source in tied.items():
        if target not in state and source in state:
            state[target] = state[source]
    missing = sorted(module.state_dict().keys() - state.keys())
    if missing:
        raise RunError(
            f"the weights in {str(weights)!r} lack {missing[0]!r}; restore the checkpoint"
        )


def _ranks_of(directory: Path) -> int:
    """How many ranks wrote a checkpoint.

    Raises:
        RunError: there is none.
    """
    for path in directory.glob("extra_state_world_size_*_rank_0.pt"):
        found = re.fullmatch(r"extra_state_world_size_(\d+)_rank_0\.pt", path.name)
        if found:
            return int(found[1])
    raise RunError(
        f"no checkpoint in {str(directory)!r}: extra_state_world_size_N_rank_0.pt is missing"
    )
