"""One start of `lightningrl sft`: fine-tune one policy, from wherever its run folder stands, and sum up."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from dataclasses import replace

from rich.console import Console

from lightningrl.cli import terminal
from lightningrl.machine.clock import SystemClock
from lightningrl_verl.start.folder import RunFolder
from lightningrl_verl.start.launching import prepare_ground
from lightningrl_verl.start.models import initial_model, records
from lightningrl_verl.start.precision import settle
from lightningrl_verl.start.preflight import SftPlan
from lightningrl_verl.start.progress import LOSSES, Display
from lightningrl_verl.start.starts import noted_start
from lightningrl_verl.start.stopping import INTERRUPTED, cancel_on_signals, first
from lightningrl_verl.start.summary import print_sft_summary, said_when_stopped
from lightningrl_verl.start.warm_starts import read_material, seed_of
from lightningrl_verl.supervised.course import Course
from lightningrl_verl.supervised.run import SupervisedRun
from lightningrl_verl.supervised.tuition import Tuition
from lightningrl_verl.training.checkpoint import Checkpoints
from lightningrl_verl.training.metrics import MetricsLog
from lightningrl_verl.training.trackers import trackers
from lightningrl_verl.worker.from_recipe import supervised_config
from lightningrl_verl.worker.learner import Learner


async def sft_run(plan: SftPlan) -> int:
    """Fine-tune as a checked recipe says; return the exit code.

    Raises:
        ConfigError: the run folder belongs to another recipe or other demonstrations, or the policy can't say one.
        NothingTrainable: no answer may be trained.
        RunError: the run can't go on.
    """
    started = time.monotonic()
    # Bound to this stream: verl's own prints are silenced by replacing `sys.stdout`.
    console = terminal.console(sys.stdout)
    folder = RunFolder(plan.loaded.run_folder)
    with folder.locked():
        folder.adopt(plan.loaded)
        loaded, precision = settle(plan.loaded)
        plan = replace(plan, loaded=loaded)
        if precision is not None:
            console.print(precision, highlight=False)
        try:
            with noted_start(folder.path):
                task = asyncio.create_task(_work(plan, folder, console))
                cancel_on_signals(task, console)
                await task
        except asyncio.CancelledError:
            console.print(said_when_stopped(folder))
            return INTERRUPTED
        elapsed = time.monotonic() - started
        print_sft_summary(console, plan.recipe, folder, plan.alias, wall_seconds=elapsed)
    return 0


async def _work(plan: SftPlan, folder: RunFolder, console: Console) -> None:
    recipe, alias = plan.recipe, plan.alias
    policy = recipe.policies[alias]
    assert policy.warm_start is not None
    base = await initial_model(plan.loaded, alias, console)
    folder.check_base({alias: base})

    def say(text: str) -> None:
        console.print(text, highlight=False, soft_wrap=True)

    material = await read_material(recipe, alias, base, plan.dialogues, plan.scored, say)
    folder.check_material(alias, material.digest())
    course = Course(policy.warm_start, len(material.train), seed=seed_of(recipe, alias))
    lines = MetricsLog(folder.metrics).lines
    if lines and lines[-1]["iteration"] >= course.updates:
        return
    log = folder.logs / "trainer.log"
    with Display(console, recipe.name, course.updates, lines, log, shown=LOSSES) as display:
        async with contextlib.AsyncExitStack() as stack:
            newest = Checkpoints(folder.checkpoints, keep=recipe.trainer.keep_checkpoints).newest()
            if newest is not None:
                display.say(f"going on from {newest[0]}")
            display.phase("start ranks")
            ground = await prepare_ground(recipe, stack)
            display.phase("load the policy")
            learner = Learner(ground.thread, None, ground.launcher)
            config = supervised_config(recipe, alias, base, course.updates)
            exact = await learner.start(
                config, None, newest[0] if newest else None, recipe.trainer.threads
            )
            if not exact:
                display.say(
                    "the checkpoint is of another number of ranks: its weights and learning rate go on, the"
                    " optimiser's moments begin anew"
                )
            shown = await stack.enter_async_context(trackers(recipe, folder.trackers, lines))
            run = SupervisedRun(
                recipe,
                folder,
                alias,
                Tuition(learner, material, course),
                records=records(base),
                watcher=display,
                trackers=shown,
                clock=SystemClock(),
            )
            await first(run.run(), ground.launcher.watch())
