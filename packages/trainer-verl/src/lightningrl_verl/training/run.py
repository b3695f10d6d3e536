"""One start of `lightningrl train`: start the processes, run the loop, sum up."""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from lightningrl.clock import SystemClock
from lightningrl.curve import draw_curve
from lightningrl_verl.engine import tool_parser
from lightningrl_verl.tiny.build import RECORD
from lightningrl_verl.training.checkpoint import Checkpoints
from lightningrl_verl.training.folder import RunFolder
from lightningrl_verl.training.loop import TrainingLoop
from lightningrl_verl.training.metrics import MetricsLog
from lightningrl_verl.training.models import initial_model
from lightningrl_verl.training.policy import Learner, ServedPolicy, backend_config
from lightningrl_verl.training.preflight import Plan
from lightningrl_verl.training.progress import Display
from lightningrl_verl.training.site import Site, site
from lightningrl_verl.training.summary import print_summary

_INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it."""


async def train_run(plan: Plan, overrides: Sequence[str]) -> int:
    """Train as a checked recipe says, from wherever its run folder stands; return the exit code.

    Raises:
        ConfigError: the run folder belongs to another recipe, or the tool parser is unknown.
        RunError: the run can't go on.
    """
    started = time.monotonic()
    # Bound to this stream: verl's own prints are silenced by replacing `sys.stdout`.
    console = Console(file=sys.stdout)
    tool_parser(plan.policy.tool_parser)
    folder = RunFolder(plan.loaded.run_folder)
    with folder.locked():
        folder.adopt(plan.loaded)
        if MetricsLog(folder.metrics).last_iteration < plan.iterations:
            task = asyncio.create_task(_train(plan, overrides, folder, console))
            _cancel_on_signals(task)
            try:
                await task
            except asyncio.CancelledError:
                console.print(
                    f"Stopped. The same command goes on from {str(folder.checkpoints)!r}."
                )
                return _INTERRUPTED
        if MetricsLog(folder.metrics).has_rewards:
            draw_curve(folder.metrics, folder.curve, plan.recipe.name)
        elapsed = time.monotonic() - started
        print_summary(console, plan.recipe, folder, plan.alias, wall_seconds=elapsed)
    return 0


def _cancel_on_signals(task: asyncio.Task[None]) -> None:
    """Cancel the work at the first signal; a second one must not cut the cleaning up short."""

    def stop() -> None:
        if not task.cancelling():
            task.cancel()

    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop)


async def _train(plan: Plan, overrides: Sequence[str], folder: RunFolder, console: Console) -> None:
    """Do the work, unless a child process is given up first."""
    async with site(plan.loaded, overrides, folder) as here:
        await first(_work(plan, folder, here, console), here.watch())


async def first(work: Coroutine[Any, Any, None], watch: Coroutine[Any, Any, None]) -> None:
    """Do `work` until it ends or `watch` raises; whichever is left is cancelled and waited for."""
    tasks = [asyncio.ensure_future(work), asyncio.ensure_future(watch)]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for one in done:
            one.result()
    finally:
        for one in tasks:
            one.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _work(plan: Plan, folder: RunFolder, here: Site, console: Console) -> None:
    base = await initial_model(plan.loaded, plan.policy, console)
    folder.check_base(base)
    lines = MetricsLog(folder.metrics).lines
    with Display(console, plan.recipe.name, plan.iterations, lines) as display:
        await _loop(plan, folder, here, base, display)


async def _loop(plan: Plan, folder: RunFolder, here: Site, base: Path, display: Display) -> None:
    recipe = plan.recipe
    newest = Checkpoints(folder.checkpoints, keep=recipe.trainer.keep_checkpoints).newest()
    checkpoint, version = (newest[0], newest[1].iteration) if newest else (None, 0)
    if checkpoint is not None:
        display.say(f"going on from {checkpoint}")
    learner = Learner()
    try:
        await learner.start(backend_config(recipe, base), checkpoint, recipe.trainer.threads)
        policy = await asyncio.to_thread(
            ServedPolicy,
            recipe,
            plan.alias,
            here.gateway,
            model=checkpoint / "huggingface" if checkpoint else base,
            version=version,
        )
        try:
            probed = await policy.open(learner)
            loop = TrainingLoop(
                recipe,
                folder,
                store=here.store,
                learner=learner,
                policy=policy,
                splits=plan.splits,
                assigner=plan.assigner,
                record=base / RECORD,
                watcher=display,
                clock=SystemClock(),
            )
            async with here.runners:
                await first(loop.run(probed), policy.watch())
        finally:
            await asyncio.shield(asyncio.to_thread(policy.close))
    finally:
        await asyncio.shield(asyncio.to_thread(learner.close))
