"""`lightningrl train --rehearse`: one small iteration on this machine, and what the whole recipe will take.

It is a real one: the recipe's agent, model, engine and trainer, with eight rollouts, one update, one checkpoint and one
sync. It differs where nothing would be measured otherwise: no warm start, no scoring, and rows without signal are
kept in the update, since the rewards of eight rollouts may all be equal. Invariant: nothing of it stays on disk; what a killed one left, the next one removes.
"""

from __future__ import annotations

import resource
import sys
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from msgspec import structs
from rich.console import Console

from lightningrl.cli import terminal
from lightningrl.errors import ConfigError
from lightningrl.metrics import read_metrics
from lightningrl.recipe import Algorithm, Data, LoadedRecipe, Optimiser
from lightningrl_verl.machine.passing_folder import PassingFolder
from lightningrl_verl.start.folder import RunFolder
from lightningrl_verl.start.preflight import check
from lightningrl_verl.start.run import iterate
from lightningrl_verl.start.stopping import INTERRUPTED

ROLLOUTS = 8
_KEEPS_ROWS = 1e-9
"""Weight of the entropy: it changes nothing that can be measured, and keeps rows without signal in the update."""

_GROWING = ("collect", "credit", "update")
"""Phases that take longer the more rollouts there are; the others depend on the model alone."""


@dataclass(frozen=True)
class Estimate:
    """What an iteration of the recipe takes, seconds."""

    measured: Mapping[str, float]
    """Phase -> seconds of the rehearsal's iteration."""
    low: float
    """If more rollouts only fill what was idle: engine slots, runners. Updates still grow with their number."""
    high: float
    """If everything that grows is proportional to the number of rollouts."""


def estimate(line: Mapping[str, Any], rollouts: int, of_recipe: int) -> Estimate:
    """Extrapolate from the metrics of the rehearsal's iteration.

    Args:
        line: its metrics.
        rollouts: that it had.
        of_recipe: that an iteration of the recipe has, further tasks left out.
    """
    names = ("collect", "sleep", "credit", "update", "checkpoint", "sync")
    measured = {
        name: float(line[f"timing/{name}_seconds"])
        for name in names
        if f"timing/{name}_seconds" in line
    }
    ratio = of_recipe / rollouts
    fixed = sum(value for name, value in measured.items() if name not in _GROWING)
    growing = sum(value for name, value in measured.items() if name in _GROWING)
    collect = measured.get("collect", 0.0)
    high = fixed + ratio * growing
    return Estimate(measured, high - (ratio - 1) * collect if ratio > 1 else high, high)


def small(loaded: LoadedRecipe, folder: Path) -> LoadedRecipe:
    """The recipe of the rehearsal.

    Args:
        loaded: the recipe.
        folder: of the rehearsal's run.

    Raises:
        ConfigError: it has no tasks to rehearse with.
    """
    recipe = loaded.recipe
    algorithm, optimiser = recipe.algorithm, recipe.optimiser
    if algorithm is None or optimiser is None or not algorithm.tasks_per_iteration:
        raise ConfigError(
            "--rehearse: needs 'algorithm' with tasks, and 'optimiser'; live rollouts can't be rehearsed"
        )
    small = structs.replace(
        recipe,
        name=f"{recipe.name}-rehearsal",
        folder=str(folder),
        policies={
            name: structs.replace(
                one, warm_start=None, optimiser=one.optimiser and _keeping_rows(one.optimiser)
            )
            for name, one in recipe.policies.items()
        },
        data=Data(train=recipe.data.train if recipe.data else None),
        live=None,
        trackers=(),
        await_rewards=(),
        await_seconds=None,
        algorithm=_of_one_iteration(algorithm),
        optimiser=_keeping_rows(optimiser),
    )
    return structs.replace(loaded, recipe=small)


def _of_one_iteration(algorithm: Algorithm) -> Algorithm:
    members = min(algorithm.group_size, ROLLOUTS)
    return structs.replace(
        algorithm,
        iterations=1,
        tasks_per_iteration=max(1, ROLLOUTS // members),
        group_size=members,
        min_group=min(algorithm.min_group, members),
        further_tasks=0,
    )


def _keeping_rows(optimiser: Optimiser) -> Optimiser:
    return structs.replace(optimiser, entropy_coeff=optimiser.entropy_coeff or _KEEPS_ROWS)


async def rehearse(loaded: LoadedRecipe, overrides: Sequence[str]) -> int:
    """Do it, say what it took, and clean up; return the exit code.

    Raises:
        ConfigError: the recipe can't be trained, or not be rehearsed.
        RunError: the iteration could not be done.
    """
    check(loaded)
    console = terminal.console(sys.stdout)
    # Beside the runs: the disk that the run itself will use.
    runs = loaded.run_folder.parent
    runs.mkdir(parents=True, exist_ok=True)
    with closing(PassingFolder(runs, ".rehearsal-")) as place:
        folder = RunFolder(place.path / "run")
        plan = check(small(loaded, folder.path))
        with folder.locked():
            folder.adopt(plan.loaded)
            named = [*overrides, f"name={plan.recipe.name}"]
            if not await iterate(plan, named, folder, console):
                console.print("Stopped. Nothing is kept.")
                return INTERRUPTED
            _tell(console, loaded, plan.recipe.algorithm, folder)
    return 0


def _tell(
    console: Console, loaded: LoadedRecipe, small: Algorithm | None, folder: RunFolder
) -> None:
    recipe = loaded.recipe
    assert recipe.algorithm is not None
    assert small is not None
    line = read_metrics(folder.metrics)[-1]
    rollouts = small.tasks_per_iteration * small.group_size
    whole = recipe.algorithm.tasks_per_iteration * recipe.algorithm.group_size
    found = estimate(line, rollouts, whole)
    checkpoint = sum(one.stat().st_size for one in folder.checkpoints.rglob("*") if one.is_file())
    kept = recipe.trainer.keep_checkpoints + 2  # the best one, and one that is being written
    phases = ", ".join(f"{name} {value:.1f} s" for name, value in found.measured.items())
    hours = [recipe.algorithm.iterations * each / 3600 for each in (found.low, found.high)]
    console.print(
        f"[bold]One iteration of {rollouts} rollouts[/]: {phases}\n"
        f"[bold]Memory[/]: trainer {_gigabytes(resource.RUSAGE_SELF)}, largest process beside it"
        f" {_gigabytes(resource.RUSAGE_CHILDREN)}, at most\n"
        f"[bold]Disk[/]: {checkpoint / 1e9:.2f} GB a checkpoint, {kept * checkpoint / 1e9:.2f} GB for the {kept} that may"
        " stand beside each other\n"
        f"[bold]The recipe[/]: {recipe.algorithm.iterations} iterations of {whole} rollouts take {hours[0]:.2f} to"
        f" {hours[1]:.2f} hours, warm start and scoring of validation and test left out\n"
        "Nothing of this is kept. The rollouts were those of a policy that has learned nothing: once it answers longer or"
        " shorter, so do the times.",
        highlight=False,
        soft_wrap=True,
    )


def _gigabytes(whose: int) -> str:
    # In KiB on Linux.
    return f"{resource.getrusage(whose).ru_maxrss * 1024 / 1e9:.1f} GB"
