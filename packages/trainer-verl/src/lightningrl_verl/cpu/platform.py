"""verl's platform interface for a machine that has only CPUs.

Answers `plugin/platform/platform_base.py:22` of verl 0.9.1. Invariant: one device named "cpu", gloo
between ranks, and no profiler, IPC or device memory.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from types import ModuleType

import torch
from verl.plugin.platform import PlatformBase

from lightningrl_verl.cpu import device


class PlatformCPU(PlatformBase):
    """The CPU as verl's accelerator; made current by `lightningrl_verl.cpu.activate`."""

    @property
    def device_name(self) -> str:
        """The name of torch's device type."""
        return "cpu"

    @property
    def vendor_name(self) -> str:
        """Part of verl's key for engines; ours are registered for every vendor."""
        return "cpu"

    @property
    def device_module(self) -> ModuleType:
        """What verl uses in place of `torch.cuda`."""
        return device

    def is_available(self) -> bool:
        """True: a process always has its CPU."""
        return True

    def current_device(self) -> str:  # pyright: ignore[reportIncompatibleMethodOverride] # verl says int, but passes it to Tensor.to
        """What verl hands to `Tensor.to`: a name, since CPUs have no index."""
        return device.current_device()

    def device_count(self) -> int:
        """One."""
        return device.device_count()

    def set_device(self, device_index: int) -> None:
        """Accept any index: there is one device."""

    def synchronize(self, device_index: int | None = None) -> None:
        """Return at once."""

    def manual_seed(self, seed: int) -> None:
        """Seed torch's CPU generator."""
        torch.manual_seed(seed)

    def manual_seed_all(self, seed: int) -> None:
        """Seed torch's CPU generator, the only one."""
        torch.manual_seed(seed)

    def set_allocator_settings(self, settings: str) -> None:
        """Ignore settings of the CUDA allocator (verl sets expandable segments around weight syncs)."""

    def empty_cache(self) -> None:
        """Return at once."""

    def get_device_capability(
        self,
        device_index: int = 0,  # noqa: ARG002 # verl names it
    ) -> tuple[int | None, int | None]:
        """No compute capability."""
        return None, None

    def communication_backend_name(self) -> str:
        """Gloo, torch's backend for CPU tensors."""
        return "gloo"

    def visible_devices_envvar(self) -> str:
        """A name, since verl demands one; nothing reads it on a CPU."""
        return "CUDA_VISIBLE_DEVICES"

    @contextmanager
    def nvtx_range(self, msg: str) -> Generator[None]:  # noqa: ARG002 # pyright: ignore[reportIncompatibleMethodOverride] # verl names msg, and annotates what it yields
        """No profiler ranges."""
        yield

    def profiler_start(self) -> None:
        """No profiler."""

    def profiler_stop(self) -> None:
        """No profiler."""

    def ray_resource_name(self) -> str:
        """A logical resource, should verl's workers ever be placed by Ray."""
        return "GPU"

    def ray_noset_envvars(self) -> list[str]:
        """None: Ray hides no CPUs."""
        return []

    def is_ipc_supported(self) -> bool:
        """No device memory, hence no handles to it."""
        return False

    def cudart(self) -> None:
        """No CUDA runtime."""
