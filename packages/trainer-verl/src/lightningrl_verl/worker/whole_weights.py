"""A sharded policy's weights as others want them: whole, fp32, by their Hugging Face names, adapters merged.

Invariant: an export holds the same numbers as engines are given, by `weights_of` or by verl.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch import Tensor

from lightningrl_verl.worker.export import export
from lightningrl_verl.worker.trained_layers import trained_names


def has_adapters(engine: Any) -> bool:
    """Whether LoRA adapters are trained."""
    return engine.model_config.lora_rank > 0


def weights_of(engine: Any) -> list[tuple[str, Tensor]]:
    """All weights of verl's engine; collective.

    On one rank without adapters they may share storage with the live ones. Of several ranks the first has
    them, on the CPU, and the others have none.
    """
    alone, first = dist.get_world_size() == 1, dist.get_rank() == 0
    found: list[tuple[str, Tensor]] = []
    # All ranks go through all of them, as each is gathered from all.
    for name, tensor in _merged(engine) if has_adapters(engine) else _gathered(engine):
        if first:
            found.append((name, tensor.detach() if alone else tensor.detach().cpu()))
    return found


def send_merged(engine: Any) -> None:
    """Have verl's engine send adapters merged in as they are exported: verl itself would round them to bf16."""
    if has_adapters(engine):
        engine.get_per_tensor_param = lambda **_: (_merged(engine), None)


def export_weights(engine: Any, folder: Path, *, model: Path, former: Path | None) -> None:
    """Write the weights in Hugging Face form; collective, the first rank writes.

    Args:
        engine: verl's.
        folder: to write.
        model: the initial model's folder.
        former: the same of the checkpoint before; weights that are not trained are linked from there.
    """
    found = dict(weights_of(engine))
    if dist.get_rank() == 0:
        tied: dict[str, str] = getattr(engine.module, "all_tied_weights_keys", None) or {}
        weights = {
            name: one
            for name, one in found.items()
            if tied.get(name, name) not in found.keys() - {name}
        }
        trained = set() if has_adapters(engine) else trained_names(engine.module)
        # By other names than an export has, or merged adapters: which have changed is not known.
        known = bool(trained) and trained <= weights.keys()
        export(
            weights,
            folder,
            model=model,
            trained=trained if known else set(weights),
            former=former,
        )
    dist.barrier()


def _gathered(engine: Any) -> Iterator[tuple[str, Tensor]]:
    parameters, _ = engine.get_per_tensor_param()
    return parameters


def _merged(engine: Any) -> Iterator[tuple[str, Tensor]]:
    """As `_merged_lora_per_tensor_param` (`workers/engine/fsdp/transformer_impl.py:1063`), but in fp32."""
    from torch.distributed.tensor import DTensor
    from verl.utils.fsdp_utils import merged_lora_context, normalize_peft_param_name
    from verl.utils.model import convert_weight_keys

    module = engine.module
    with merged_lora_context(module, backup_adapters=True):
        named = convert_weight_keys(normalize_peft_param_name(module.state_dict()), module)
        for name, one in named.items():
            # Copied inside the context: afterwards the storage holds the unmerged weights again.
            yield name, (one.full_tensor() if isinstance(one, DTensor) else one).detach().clone()
