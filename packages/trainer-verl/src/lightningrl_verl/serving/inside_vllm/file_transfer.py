"""vLLM's workers load weights from safetensors files that a trainer has written.

Invariant: after `finish_weight_update` every parameter, and every copy of one that vLLM has made for its
kernels, holds what the files said last.
"""

# vLLM is in its own environment alone, where this is imported.
# pyright: reportMissingImports=false, reportUntypedBaseClass=false

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead
from vllm.model_executor.model_loader.reload.layerwise import (
    finalize_layerwise_reload,
    initialize_layerwise_reload,
)
from vllm.platforms import current_platform


@dataclass
class NoInit(WeightTransferInitInfo):
    """Files need no introduction."""


@dataclass
class Files(WeightTransferUpdateInfo):
    """Where the weights are."""

    paths: list[str]
    """Safetensors files with Hugging Face names, all of the model together."""


class FileTransfer(WeightTransferEngine):
    """One worker's side of an update."""

    init_info_cls = NoInit
    update_info_cls = Files

    def init_transfer_engine(self, init_info: NoInit) -> None:
        """Nothing to do."""

    def start_weight_update(self) -> None:
        """Have vLLM load layer by layer, as from a checkpoint."""
        initialize_layerwise_reload(self.model)

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """Load the files; the base class waits for an accelerator, which a CPU lacks."""
        self.receive_weights(self.parse_update_info(update_info))
        if torch.accelerator.is_available():
            torch.accelerator.synchronize()

    def receive_weights(self, update_info: Files) -> None:
        """Load the files."""
        self.model.load_weights(_tensors(update_info.paths))

    def finish_weight_update(self) -> None:
        """Have vLLM do what it does after loading, and on a CPU what it leaves out."""
        finalize_layerwise_reload(self.model, self.model_config)
        if current_platform.is_cpu():
            _repack_tied_heads(self.model)

    def shutdown(self) -> None:
        """Nothing to do."""


def _tensors(paths: list[str]) -> Iterator[tuple[str, Tensor]]:
    for path in paths:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 # it is no mapping
                yield name, file.get_tensor(name)


def _repack_tied_heads(model: Any) -> None:
    """Renew the copy of a tied head that oneDNN multiplies by.

    vLLM makes it on loading, but a tied head has no tensor of its own in the files, so a reload passes
    over it (`model_executor/model_loader/reload/layerwise.py` at 0.32.0) and the old head goes on serving.
    """
    from vllm.model_executor.layers.utils import dispatch_cpu_unquantized_gemm

    for module in model.modules():
        if isinstance(module, ParallelLMHead) and module.weight.numel():
            dispatch_cpu_unquantized_gemm(module, remove_weight=False)
