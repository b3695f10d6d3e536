"""The warm starts of a run: made on the run's own ranks before its first iteration, or found in the cache."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence, Set
from pathlib import Path

from lightningrl.recipe import Recipe
from lightningrl.settings import cache_folder
from lightningrl_verl.machine.built_folder import BuiltFolder
from lightningrl_verl.start.folder import RunFolder
from lightningrl_verl.start.launching import Ground
from lightningrl_verl.start.preflight import Dialogues, Plan
from lightningrl_verl.start.progress import Display
from lightningrl_verl.supervised.course import Course
from lightningrl_verl.supervised.demonstrations import Demonstration
from lightningrl_verl.supervised.prepare import prepare
from lightningrl_verl.supervised.rows import Material
from lightningrl_verl.supervised.stored import StoredRollout, read_rollouts
from lightningrl_verl.supervised.tuition import Tuition
from lightningrl_verl.supervised.warm_start import build_warm_start, place_of
from lightningrl_verl.training.metrics import Metrics
from lightningrl_verl.worker.from_recipe import supervised_config
from lightningrl_verl.worker.learner import Learner

_FOLDER = "warm-starts"
"""Of the cache."""


async def warm_starts(
    plan: Plan, bases: Mapping[str, Path], folder: RunFolder, ground: Ground, display: Display
) -> dict[str, Path]:
    """What policies with a `warm_start` start from, by alias.

    Args:
        plan: the run's.
        bases: alias -> Hugging Face folder of what it learns on.
        folder: the run's, which knows what it learned from.
        ground: where it is trained.
        display: is told how far it is.

    Raises:
        ConfigError: a policy can't say a demonstration, or the run began on others.
        NothingTrainable: no answer may be trained.
        RunError: training diverged, a folder of the cache is damaged, or a rank has died.
    """
    return {
        alias: await _warm_start(plan, alias, bases[alias], dialogues, folder, ground, display)
        for alias, dialogues in plan.dialogues.items()
    }


async def read_material(
    recipe: Recipe,
    alias: str,
    base: Path,
    dialogues: Dialogues,
    scored: Set[str],
    say: Callable[[str], None],
) -> Material:
    """Bring a policy's demonstrations into rows, and say what became of them.

    Args:
        recipe: of the run.
        alias: of the policy.
        base: what it learns on.
        dialogues: what it learns from.
        scored: ids of the tasks that it is scored on, which it does not learn from.
        say: is told.

    Raises:
        ConfigError: the policy can't say one, or the run has no rollout with enough reward.
        NothingTrainable: no answer may be trained.
    """
    policy = recipe.policies[alias]
    settings = policy.warm_start
    assert settings is not None
    shown: Sequence[Demonstration] | Sequence[StoredRollout] = (
        await read_rollouts(dialogues, settings, alias, scored, say)
        if isinstance(dialogues, Path)
        else dialogues
    )
    seed = seed_of(recipe, alias)
    found = await asyncio.to_thread(prepare, shown, base, policy, alias=alias, seed=seed)
    say(f"warm start of {alias!r}: {found.told()}")
    return found


def seed_of(recipe: Recipe, alias: str) -> int:
    """The seed of a policy's warm start."""
    settings = recipe.policies[alias].warm_start
    assert settings is not None
    return recipe.seed if settings.seed is None else settings.seed


async def _warm_start(
    plan: Plan,
    alias: str,
    base: Path,
    dialogues: Dialogues,
    folder: RunFolder,
    ground: Ground,
    display: Display,
) -> Path:
    recipe = plan.recipe
    settings = recipe.policies[alias].warm_start
    assert settings is not None
    display.phase(f"read the demonstrations of {alias!r}")
    material = await read_material(recipe, alias, base, dialogues, plan.splits.scored, display.say)
    folder.check_material(alias, material.digest())
    course = Course(settings, len(material.train), seed=seed_of(recipe, alias))
    config = supervised_config(recipe, alias, base, course.updates)
    root = cache_folder() / _FOLDER
    place = place_of(root, alias, base, material, settings, config)
    found = await asyncio.to_thread(place.found)
    if found is not None:
        display.say(_told(alias, found, "found in the cache"))
        return found.path
    display.phase(f"warm-start {alias!r}")

    def progress(done: int, updates: int, metrics: Metrics) -> None:
        display.detail(f"update {done}/{updates}, loss {metrics['sft/loss']:.3f}")

    learner = Learner(ground.thread, None, ground.launcher)
    await learner.start(config, None, None, recipe.trainer.threads)
    tuition = Tuition(learner, material, course)
    made = await build_warm_start(place, base, tuition, settings, progress)
    # RL's own copy of the policy takes its place.
    await learner.call(lambda one: one.close())
    display.say(_told(alias, made, f"made in {made.record['seconds']:.0f} s"))
    return made.path


def _told(alias: str, warm: BuiltFolder, how: str) -> str:
    record = warm.record
    before, after = record["val_loss_before"], record["val_loss_after"]
    scored = "" if before is None else f", loss on what was held out {before:.3f} -> {after:.3f}"
    return f"warm start of {alias!r}: {record['updates']} updates{scored}, {how}, {warm.path}"
