"""One start of `lightningrl train`: start the processes, run the loop, sum up."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from lightningrl.cli import terminal
from lightningrl.curve import draw_curve
from lightningrl.errors import ConfigError
from lightningrl.machine.clock import SystemClock
from lightningrl.recipe import Data
from lightningrl_verl.engine import UnknownToolParserError, tool_parser
from lightningrl_verl.serving.probe import ProbeResult
from lightningrl_verl.start.folder import RunFolder
from lightningrl_verl.start.launching import prepare_ground
from lightningrl_verl.start.models import initial_model, records
from lightningrl_verl.start.policies import serve_frozen, start_trainees
from lightningrl_verl.start.precision import settle
from lightningrl_verl.start.preflight import Plan
from lightningrl_verl.start.progress import Display
from lightningrl_verl.start.site import Site, site
from lightningrl_verl.start.starts import noted_start
from lightningrl_verl.start.stopping import INTERRUPTED, cancel_on_signals, first
from lightningrl_verl.start.summary import print_summary, said_when_stopped
from lightningrl_verl.start.warm_starts import warm_starts
from lightningrl_verl.training.checkpoint import Checkpoints
from lightningrl_verl.training.loop import TrainingLoop
from lightningrl_verl.training.metrics import MetricsLog, has_ended
from lightningrl_verl.training.study import Study
from lightningrl_verl.training.trackers import trackers

_NOTHING_LEARNED = 3
"""Exit code of a run that has all its iterations and made no update, as of one that a guard stopped."""


async def train_run(plan: Plan, overrides: Sequence[str]) -> int:
    """Train as a checked recipe says, from wherever its run folder stands; return the exit code.

    Raises:
        ConfigError: the run folder belongs to another recipe, or the tool parser is unknown.
        RunError: the run can't go on.
    """
    started = time.monotonic()
    # Bound to this stream: verl's own prints are silenced by replacing `sys.stdout`.
    console = terminal.console(sys.stdout)
    if plan.recipe.engine.backend == "torch":
        for alias, policy in plan.recipe.policies.items():
            try:
                tool_parser(policy.tool_parser)
            except UnknownToolParserError as error:
                raise ConfigError(f"policies.{alias}.tool_parser: {error}") from error
    folder = RunFolder(plan.loaded.run_folder)
    with folder.locked():
        folder.adopt(plan.loaded)
        assert plan.recipe.algorithm is not None
        ended = has_ended(plan.recipe.algorithm, MetricsLog(folder.metrics).lines)
        if not ended and not await iterate(plan, overrides, folder, console):
            console.print(said_when_stopped(folder))
            return INTERRUPTED
        if MetricsLog(folder.metrics).has_rewards:
            draw_curve(folder.metrics, folder.curve, plan.recipe.name)
        elapsed = time.monotonic() - started
        learned = print_summary(console, plan.recipe, folder, plan.trained, wall_seconds=elapsed)
    return 0 if learned else _NOTHING_LEARNED


async def iterate(
    plan: Plan, overrides: Sequence[str], folder: RunFolder, console: Console
) -> bool:
    """Do the iterations that the run's folder lacks; False: a signal has stopped them.

    Raises:
        ConfigError: a file of tasks is another than when the run began.
        RunError: the run can't go on.
    """
    loaded, precision = settle(plan.loaded)
    if precision is not None:
        console.print(precision, highlight=False)
    for told in folder.check_tasks(plan.recipe.data or Data(), plan.splits):
        console.print(told, highlight=False)
    work = _train(replace(plan, loaded=loaded), overrides, folder, console)
    try:
        with noted_start(folder.path):
            task = asyncio.create_task(work)
            cancel_on_signals(task, console)
            await task
    except asyncio.CancelledError:
        return False
    return True


async def _train(plan: Plan, overrides: Sequence[str], folder: RunFolder, console: Console) -> None:
    """Do the work, unless a child process is given up first."""
    async with site(plan.loaded, overrides, folder) as here:
        await first(_work(plan, folder, here, console), here.watch())


async def _work(plan: Plan, folder: RunFolder, here: Site, console: Console) -> None:
    bases = {
        alias: await initial_model(plan.loaded, alias, console)
        for alias, policy in plan.recipe.policies.items()
        if policy.url is None
    }
    folder.check_base({one: bases[one] for one in plan.trained if one not in plan.dialogues})
    lines = MetricsLog(folder.metrics).lines
    log = folder.logs / "trainer.log"
    with Display(console, plan.recipe.name, plan.iterations, lines, log) as display:
        async with contextlib.AsyncExitStack() as stack:
            await _loop(plan, folder, here, bases, display, stack)


async def _loop(
    plan: Plan,
    folder: RunFolder,
    here: Site,
    bases: Mapping[str, Path],
    display: Display,
    stack: contextlib.AsyncExitStack,
) -> None:
    recipe = plan.recipe
    newest = Checkpoints(folder.checkpoints, keep=recipe.trainer.keep_checkpoints).newest()
    if newest is not None:
        display.say(f"going on from {newest[0]}")
    display.phase("start frozen policies and ranks")
    frozen = await serve_frozen(plan.loaded, bases, here.gateway, stack)
    ground = await prepare_ground(recipe, stack)
    warm = await warm_starts(plan, bases, folder, ground, display)
    folder.check_base(warm)
    bases = {**bases, **warm}
    folder.keep_tokenizers(bases)
    display.phase("load policies")
    trainees = await start_trainees(plan, bases, here.gateway, newest, ground, display.say, stack)
    probed: dict[str, ProbeResult] = {}
    display.phase("open engines")
    for one in trainees:
        result = await one.policy.open(one.learner)
        assert result is not None
        probed[one.alias] = result
    if recipe.live is not None:
        display.say(f"live rollouts of run {recipe.name!r} are answered at {here.url}")
    lines = MetricsLog(folder.metrics).lines
    shown = await stack.enter_async_context(trackers(recipe, folder.trackers, lines))
    loop = TrainingLoop(
        recipe,
        folder,
        store=here.store,
        gateway=here.gateway,
        trainees=trainees,
        study=Study(recipe, plan.assigner, trainees, plan.scorer),
        splits=plan.splits,
        records={alias: records(bases[alias]) for alias in plan.trained},
        watcher=display,
        trackers=shown,
        clock=SystemClock(),
    )
    engines = [*frozen, *(one.policy for one in trainees)]
    async with here.runners:
        watches = (ground.launcher.watch(), *(engine.watch() for engine in engines))
        await first(loop.run(probed), *watches)
