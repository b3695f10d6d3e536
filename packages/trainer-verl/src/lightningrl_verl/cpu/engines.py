"""verl's FSDP2 engines, registered for the device "cpu".

Answers two places of verl 0.9.1: `workers/engine/base.py:399` knows engines for cuda and npu only,
and `workers/engine/fsdp/transformer_impl.py:462` offloads frozen models to *pinned* memory, which
torch refuses without an accelerator. Invariant: the engines' arithmetic is verl's, unchanged.
"""

from __future__ import annotations

from verl.workers.engine import EngineRegistry
from verl.workers.engine.fsdp import transformer_impl

_FSDP = ["fsdp", "fsdp2"]


def _no_offload(*, pin_memory: bool) -> None:
    """Stands in for `CPUOffloadPolicy`: None means no offload, and the weights are on the CPU anyway."""


class _LanguageModelEngine(transformer_impl.FSDPEngineWithLMHead):
    """verl's policy engine under a class of its own, since verl registers a class once per device."""


class _ValueModelEngine(transformer_impl.FSDPEngineWithValueHead):
    """verl's critic engine, likewise."""


def register_engines() -> None:
    """Register both engines and lift the pinning. Calling it again changes nothing."""
    known: dict[str, dict[str, dict[str, type]]] = (
        EngineRegistry._engines
    )  # verl has no "is registered"
    if "cpu" in known["language_model"]["fsdp2"]:
        return
    EngineRegistry.register(model_type="language_model", backend=_FSDP, device="cpu")(
        _LanguageModelEngine
    )
    EngineRegistry.register(model_type="value_model", backend=_FSDP, device="cpu")(
        _ValueModelEngine
    )
    transformer_impl.CPUOffloadPolicy = _no_offload  # pyright: ignore[reportPrivateImportUsage] # the name it calls
