"""One start of `lightningrl train`: check everything, start the processes, run the loop, sum up."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from lightningrl.clock import SystemClock
from lightningrl.credit import CreditAssigner, find_assigner
from lightningrl.errors import ConfigError
from lightningrl.recipe import DataSource, LoadedRecipe
from lightningrl.tasks import load_tasks
from lightningrl_verl.backend_config import check_overrides
from lightningrl_verl.training.batches import Task
from lightningrl_verl.training.checkpoint import Checkpoints
from lightningrl_verl.training.folder import RunFolder
from lightningrl_verl.training.loop import Splits, TrainingLoop
from lightningrl_verl.training.metrics import MetricsLog
from lightningrl_verl.training.models import initial_model
from lightningrl_verl.training.policy import Learner, ServedPolicy, backend_config, trained_alias
from lightningrl_verl.training.progress import Display
from lightningrl_verl.training.site import Site, site
from lightningrl_verl.training.summary import print_summary

_INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it."""


async def train_run(loaded: LoadedRecipe, overrides: Sequence[str]) -> int:
    """Train as the recipe says, from wherever its run folder stands; return the exit code.

    Raises:
        ConfigError: the recipe or its data is wrong; nothing was started.
        RunError: the run can't go on.
    """
    started = time.monotonic()
    console = Console()
    assigner, splits = _check(loaded)
    folder = RunFolder(loaded.run_folder)
    with folder.locked():
        folder.adopt(loaded)
        if MetricsLog(folder.metrics).last_iteration < _iterations(loaded):
            task = asyncio.ensure_future(
                _train(loaded, overrides, folder, splits, assigner, console)
            )
            for number in (signal.SIGINT, signal.SIGTERM):
                asyncio.get_running_loop().add_signal_handler(number, task.cancel)
            try:
                await task
            except asyncio.CancelledError:
                console.print(
                    f"Stopped. The same command goes on from {str(folder.checkpoints)!r}."
                )
                return _INTERRUPTED
        print_summary(
            console,
            loaded.recipe,
            folder,
            trained_alias(loaded.recipe),
            wall_seconds=time.monotonic() - started,
        )
    return 0


def _check(loaded: LoadedRecipe) -> tuple[CreditAssigner, Splits]:
    """Find every mistake that can be found before a process is started."""
    recipe = loaded.recipe
    if recipe.algorithm is None or recipe.optimiser is None or recipe.data is None:
        raise ConfigError("recipe: training needs 'algorithm', 'optimiser' and 'data'")
    trained_alias(recipe)
    assigner = find_assigner(recipe.algorithm.credit, recipe.algorithm.credit_args)
    check_overrides(recipe.verl)
    data = recipe.data
    return assigner, Splits(
        train=_split(loaded, data.train, "train"),
        val=_split(loaded, data.val, "val"),
        test=_split(loaded, data.test, "test"),
    )


def _split(loaded: LoadedRecipe, source: DataSource | None, name: str) -> list[Task]:
    return load_tasks(source, folder=loaded.folder, split=name) if source is not None else []


def _iterations(loaded: LoadedRecipe) -> int:
    assert loaded.recipe.algorithm is not None
    return loaded.recipe.algorithm.iterations


async def _train(
    loaded: LoadedRecipe,
    overrides: Sequence[str],
    folder: RunFolder,
    splits: Splits,
    assigner: CreditAssigner,
    console: Console,
) -> None:
    async with site(loaded, overrides, folder) as here:
        work = asyncio.ensure_future(_work(loaded, folder, splits, assigner, here, console))
        watch = asyncio.ensure_future(here.watch())
        try:
            await asyncio.wait([work, watch], return_when=asyncio.FIRST_COMPLETED)
            await (work if work.done() else watch)
        finally:
            for one in (work, watch):
                one.cancel()
            await asyncio.gather(work, watch, return_exceptions=True)


async def _work(
    loaded: LoadedRecipe,
    folder: RunFolder,
    splits: Splits,
    assigner: CreditAssigner,
    here: Site,
    console: Console,
) -> None:
    policy = loaded.recipe.policies[trained_alias(loaded.recipe)]
    base = await initial_model(loaded, policy, console)
    with Display(console, name=loaded.recipe.name, iterations=_iterations(loaded)) as display:
        await _loop(loaded, folder, splits, assigner, here, base, display)


async def _loop(
    loaded: LoadedRecipe,
    folder: RunFolder,
    splits: Splits,
    assigner: CreditAssigner,
    here: Site,
    base: Path,
    display: Display,
) -> None:
    recipe = loaded.recipe
    newest = Checkpoints(folder.checkpoints, keep=recipe.trainer.keep_checkpoints).newest()
    checkpoint, version = (newest[0], newest[1].iteration) if newest else (None, 0)
    if checkpoint is not None:
        display.say(f"going on from {checkpoint}")
    learner = Learner()
    try:
        threads = recipe.trainer.threads or os.cpu_count() or 1
        await learner.start(backend_config(recipe, base), checkpoint, threads)
        policy = await asyncio.to_thread(
            ServedPolicy,
            recipe,
            trained_alias(recipe),
            here.gateway,
            model=checkpoint / "huggingface" if checkpoint else base,
            version=version,
        )
        try:
            await policy.start()
            await TrainingLoop(
                recipe,
                folder,
                store=here.store,
                learner=learner,
                policy=policy,
                splits=splits,
                assigner=assigner,
                watcher=display,
                clock=SystemClock(),
            ).run()
        finally:
            policy.close()
    finally:
        learner.close()
