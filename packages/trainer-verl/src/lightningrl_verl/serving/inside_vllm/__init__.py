"""What vLLM itself loads, in its own environment: how it takes weights from files.

vLLM calls `register` in each of its processes (entry point `vllm.general_plugins`). Invariant: nothing of ours
is imported here beside this package, so that `pip install --no-deps lightningrl-verl` is enough there.
"""

from __future__ import annotations

BACKEND = "lightningrl_files"
"""For vLLM's `--weight-transfer-config '{"backend": "lightningrl_files"}'`."""


def register() -> None:
    """Make the backend known to vLLM; vLLM may call this several times in a process."""
    from vllm.distributed.weight_transfer.factory import (  # pyright: ignore[reportMissingImports] # only vLLM's environment has it
        WeightTransferEngineFactory,
    )

    if BACKEND not in WeightTransferEngineFactory._registry:  # there is no "is registered"
        WeightTransferEngineFactory.register_engine(
            BACKEND, f"{__name__}.file_transfer", "FileTransfer"
        )
