"""The part of `torch.cuda`'s interface that verl calls on its device module, for a CPU.

verl takes a module here (`plugin/platform/platform_base.py:72`), so this is one. Invariant: there is
no device memory, hence every memory figure is 0, as in verl's own special case for `torch.cpu`
(`utils/profiler/performance.py:43`); `is_available` is False so that verl skips device clean-up.
"""

from __future__ import annotations

import torch


def is_available() -> bool:
    """False: no accelerator, so verl's cache and memory clean-up returns at once."""
    return False


def device_count() -> int:
    """One CPU, whatever its cores."""
    return 1


def current_device() -> str:
    """What verl hands to `Tensor.to`."""
    return "cpu"


def set_device(_device: object) -> None:
    """Accept any device: there is one."""


def synchronize(_device: object = None) -> None:
    """Return at once: CPU work is done when its call returns."""


def empty_cache() -> None:
    """Return at once: there is no cache."""


def get_device_name(_device: object = None) -> str:
    """A name that verl's table of peak FLOPS lists (`utils/flops_counter.py:23`)."""
    return "CPU"


def set_rng_state(state: torch.Tensor, _device: object = None) -> None:
    """Set torch's generator, the only one (`utils/checkpoint/checkpoint_manager.py:219`)."""
    torch.set_rng_state(state)


def memory_allocated(_device: object = None) -> int:
    """Bytes of device memory: 0."""
    return 0


def memory_reserved(_device: object = None) -> int:
    """Bytes of device memory: 0."""
    return 0


def max_memory_allocated(_device: object = None) -> int:
    """Bytes of device memory: 0."""
    return 0


def max_memory_reserved(_device: object = None) -> int:
    """Bytes of device memory: 0."""
    return 0


def mem_get_info(_device: object = None) -> tuple[int, int]:
    """Free and total bytes of device memory: 0 and 0."""
    return 0, 0
