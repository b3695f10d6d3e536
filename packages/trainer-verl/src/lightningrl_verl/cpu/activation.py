"""Turns the CPU platform on in this process, explicitly and once.

Invariant: after `activate` returns, verl's platform is ours and its FSDP2 engines know the device
"cpu"; a process in which verl already settled on another platform is refused, not half-changed.
"""

from __future__ import annotations

from lightningrl.errors import ConfigError


def activate() -> None:
    """Make verl run on the CPU in this process. Calling it again changes nothing.

    verl documents `VERL_PLATFORM` and `VERL_USE_EXTERNAL_MODULES` for this; they would leak into
    child processes. verl resolves its platform on first use, not on import
    (`plugin/platform/platform_manager.py:140`), so setting it directly after the import is enough.

    Raises:
        ConfigError: verl already resolved another platform in this process, which it can't undo.
    """
    from verl.plugin.platform import platform_manager

    from lightningrl_verl.cpu.platform import PlatformCPU

    resolved = platform_manager._current_platform  # the public look resolves it
    if resolved is None:
        platform_manager.set_platform(PlatformCPU())
    elif not isinstance(resolved, PlatformCPU):
        raise ConfigError(
            f"verl already runs on {resolved.device_name!r} in this process, so it can't run on the "
            "CPU too; use one device per process, or call lightningrl_verl.cpu.activate() first"
        )
    from lightningrl_verl.cpu.engines import register_engines

    register_engines()
