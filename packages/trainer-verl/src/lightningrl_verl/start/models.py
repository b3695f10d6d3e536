"""Where a policy's initial weights come from: a model that the recipe names, or a tiny policy."""

from __future__ import annotations

import asyncio
import shutil
import threading
from pathlib import Path

from rich.console import Console

from lightningrl.errors import ConfigError
from lightningrl.recipe import LoadedRecipe
from lightningrl.settings import cache_folder
from lightningrl.user_input.references import load_object
from lightningrl_verl.pretrained.describe import load_tokenizer, writes_tools
from lightningrl_verl.pretrained.prepare import prepare, summary
from lightningrl_verl.pretrained.record import RECORD as PRETRAINED
from lightningrl_verl.start.preflight import find_model
from lightningrl_verl.supervised.warm_start import RECORD as WARM_START
from lightningrl_verl.tiny import TinySpec, build_tiny
from lightningrl_verl.tiny.build import RECORD as TINY


async def initial_model(loaded: LoadedRecipe, alias: str, console: Console) -> Path:
    """The Hugging Face folder that a policy starts from; it is built or converted if need be.

    Cancelling it stops a warm start at its next update.

    Raises:
        ConfigError: the model isn't there, or can't be used.
        RunError: a folder in the cache is damaged.
    """
    policy = loaded.recipe.policies[alias]
    if policy.tiny is not None:
        stopped = threading.Event()
        try:
            return await asyncio.to_thread(_tiny, loaded, policy.tiny, console, stopped)
        finally:
            stopped.set()
    return await asyncio.to_thread(_pretrained, loaded, alias, console)


async def build_policy(loaded: LoadedRecipe, alias: str | None, console: Console) -> Path:
    """The initial model of a policy, which must be a tiny one.

    Args:
        loaded: the recipe.
        alias: the policy's. `None`: the only tiny one's.
        console: where progress is shown.

    Raises:
        ConfigError: the recipe has no such policy, or it isn't tiny, or there are several.
    """
    tiny = [name for name, policy in loaded.recipe.policies.items() if policy.tiny is not None]
    chosen = tiny if alias is None else [alias]
    if not set(chosen) <= set(tiny) or not chosen:
        raise ConfigError(
            f"policies: {alias or 'the recipe'!r} has no 'tiny' to build; those that do: {tiny}"
        )
    if len(chosen) > 1:
        raise ConfigError(f"policies: name one of {tiny} by --policy")
    return await initial_model(loaded, chosen[0], console)


def records(model: Path) -> list[Path]:
    """The files by which a model tells where it came from."""
    return [model / name for name in (TINY, PRETRAINED, WARM_START) if (model / name).is_file()]


def copy_policy(model: Path, out: Path) -> None:
    """Copy a model folder to a new place.

    Raises:
        ConfigError: `out` exists.
    """
    if out.exists():
        raise ConfigError(f"{str(out)!r} exists; name a new folder")
    shutil.copytree(model, out)


def _pretrained(loaded: LoadedRecipe, alias: str, console: Console) -> Path:
    source, template = find_model(loaded, alias)
    with console.status(f"preparing the model {source.reference!r}"):
        prepared = prepare(source, template)
        policy = loaded.recipe.policies[alias]
        parser = policy.tool_parser
        reads = policy.accepts_unread or parser == "none"
        deaf = not reads and not writes_tools(load_tokenizer(prepared.path))
    if deaf:
        console.print(
            f"[yellow]policies.{alias}: the chat template leaves tools out, so the model never sees them, though"
            f" tool_parser is {parser!r}. Give it one that has them, such as chat_template: hermes[/]",
            soft_wrap=True,
        )
    # A folder of the user's own, used as it is, is no news.
    if prepared.path != source.path:
        console.print(summary(prepared), highlight=False, soft_wrap=True)
    return prepared.path


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
