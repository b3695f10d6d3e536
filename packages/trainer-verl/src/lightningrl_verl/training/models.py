"""Where a policy's initial weights come from: a folder that the recipe names, or a tiny policy."""

from __future__ import annotations

import asyncio
import shutil
import threading
from pathlib import Path

from rich.console import Console

from lightningrl.errors import ConfigError
from lightningrl.objects import load_object
from lightningrl.recipe import LoadedRecipe, PolicyRecipe
from lightningrl.settings import cache_folder
from lightningrl_verl.tiny import TinySpec, build_tiny
from lightningrl_verl.training.preflight import model_folder, trained_alias


async def initial_model(loaded: LoadedRecipe, policy: PolicyRecipe, console: Console) -> Path:
    """The Hugging Face folder that a policy starts from; a tiny policy is built if need be.

    Cancelling it stops a warm start at its next update.

    Raises:
        ConfigError: the folder isn't there or holds no model.
    """
    if policy.tiny is not None:
        stopped = threading.Event()
        try:
            return await asyncio.to_thread(_tiny, loaded, policy.tiny, console, stopped)
        finally:
            stopped.set()
    return model_folder(loaded, policy)


async def build_policy(loaded: LoadedRecipe, console: Console) -> Path:
    """The trained policy's initial model, which must be a tiny one.

    Raises:
        ConfigError: the recipe's policy isn't a tiny one.
    """
    policy = loaded.recipe.policies[trained_alias(loaded.recipe)]
    if policy.tiny is None:
        raise ConfigError("policies: the recipe's policy has no 'tiny' to build")
    return await initial_model(loaded, policy, console)


def copy_policy(model: Path, out: Path) -> None:
    """Copy a model folder to a new place.

    Raises:
        ConfigError: `out` exists.
    """
    if out.exists():
        raise ConfigError(f"{str(out)!r} exists; name a new folder")
    shutil.copytree(model, out)


class _Stopped(Exception):
    """The warm start was cancelled."""


def _tiny(loaded: LoadedRecipe, reference: str, console: Console, stopped: threading.Event) -> Path:
    describe = load_object(reference, what="policies: 'tiny'", folder=loaded.folder)
    spec = TinySpec(**describe())
    with console.status(f"building the tiny policy {spec.name!r}") as status:

        def progress(done: int, total: int, loss: float) -> None:
            if stopped.is_set():
                raise _Stopped
            status.update(
                f"warm-starting the tiny policy {spec.name!r}: {done}/{total}, loss {loss:.3f}"
            )

        built = build_tiny(
            spec,
            cache_folder() / "tiny",
            seed=loaded.recipe.seed,
            threads=loaded.recipe.trainer.threads,
            progress=progress,
        )
    how = f"warm-started in {built.seconds:.0f} s" if built.built else "found in the cache"
    console.print(
        f"tiny policy {spec.name!r}: {built.parameters:,} parameters, {how}, {built.path}",
        highlight=False,
        soft_wrap=True,
    )
    return built.path
