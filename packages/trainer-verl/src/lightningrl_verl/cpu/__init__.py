"""verl 0.9.1 on a machine without an accelerator: what its unmodified wheel lacks to run on a CPU.

verl ships platforms for NVIDIA, ROCm and Ascend only. `activate` adds a fourth through verl's own
registries, plus one patch. Complete list of what is supplied, with the place in verl 0.9.1 that it answers:

- a platform (`plugin/platform/platform_manager.py:150`, `set_platform`): `platform.py`, `device.py`;
- FSDP2 engines for the device "cpu" (`workers/engine/base.py:399`, `EngineRegistry.get_engine_cls`),
  and no pinned-memory offload of frozen models (`workers/engine/fsdp/transformer_impl.py:462`):
  `engines.py`.

The process group is made by `lightningrl_verl.worker.process_group`, on every device. Nothing here touches
the environment, so that child processes inherit nothing. The invariant: nothing of verl's is
imported before `activate` is called, and activating twice is the same as once.
"""

from lightningrl_verl.cpu.activation import activate

__all__ = ["activate"]
