"""`lightningrl compare`: credit methods on one recipe, from one start, to the same number of sampled tokens.

Invariants: a cell is one method with one seed, a run of its own in the comparison's folder; all cells begin with the same
weights, or there is no result. Cells are run one after the other, and one that has ended is not run again, so the same
command goes on from wherever it was stopped. Every number of the page is one of a cell's metrics.
"""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lightningrl.cli import terminal
from lightningrl.cli.stored_run import read_origin
from lightningrl.credit import StatefulAssigner, find_assigner
from lightningrl.credit.naming import method_name, parse_method, split_methods
from lightningrl.credit.shipped import BY_FORKS, SHIPPED
from lightningrl.errors import ConfigError, RunError
from lightningrl.machine.durable import write_text
from lightningrl.recipe import LoadedRecipe, Recipe, load_recipe
from lightningrl_verl.start.comparison_figure import draw
from lightningrl_verl.start.comparison_page import page, told_of
from lightningrl_verl.start.folder import RunFolder
from lightningrl_verl.start.preflight import check, check_packages
from lightningrl_verl.start.stopping import INTERRUPTED
from lightningrl_verl.training.metrics import MetricsLog, has_ended

_TEST = "test/reward"
"""What is compared unless another metric is named."""


@dataclass(frozen=True)
class Method:
    """A credit method as a cell's recipe has it."""

    name: str
    """As the command line takes it."""
    changes: tuple[str, ...]
    """Keys of the recipe."""

    @property
    def file(self) -> str:
        """How its cells' names begin."""
        return re.sub(r"[^A-Za-z0-9_.+-]+", "-", self.name).strip("-")


@dataclass(frozen=True)
class Cell:
    """One method with one seed."""

    method: Method
    seed: int
    loaded: LoadedRecipe
    changes: tuple[str, ...]
    """All keys that its command line changes."""

    @property
    def folder(self) -> RunFolder:
        """Its run's."""
        return RunFolder(self.loaded.run_folder)

    @property
    def lines(self) -> list[dict[str, Any]]:
        """Its metrics; empty before it has begun."""
        return MetricsLog(self.folder.metrics).lines

    @property
    def ended(self) -> bool:
        """Whether it has all its iterations or tokens, and its scores."""
        assert self.loaded.recipe.algorithm is not None
        return has_ended(self.loaded.recipe.algorithm, self.lines)


@dataclass(frozen=True)
class Comparison:
    """What is to be compared, checked."""

    recipe: Path
    overrides: tuple[str, ...]
    folder: Path
    methods: tuple[Method, ...]
    seeds: tuple[int, ...]
    tokens: int
    score: str
    tiny: tuple[str, ...]
    """Aliases whose policies are built once, before the cells."""
    pins: tuple[str, ...]
    """Keys that give all cells the same start."""


def check_comparison(
    path: Path,
    overrides: Sequence[str],
    *,
    credit: Sequence[str],
    tokens: int,
    seeds: int,
    score: str | None,
) -> Comparison:
    """Check what is asked for, with every method, before anything runs.

    Args:
        path: of the recipe.
        overrides: of its keys.
        credit: methods, see `credit.naming`; each text may hold several. The first is what others are compared with.
        tokens: that every cell samples for training.
        seeds: how many, from the recipe's own on.
        score: a metric of the last iteration's line. `None`: the score of the test split.

    Raises:
        ConfigError: there are fewer than two methods or seeds, or one of them can't be trained.
    """
    loaded = load_recipe(path, overrides)
    recipe = loaded.recipe
    if recipe.live is not None:
        raise ConfigError("live: rollouts of users can't be had again by each method; leave it out")
    if score is None and (recipe.data is None or recipe.data.test is None):
        raise ConfigError(
            "data.test: methods are compared on this split; add it, or name another metric of the last iteration, such"
            " as --score val/reward_sampled"
        )
    if seeds < 2:
        raise ConfigError("--seeds: differences between runs are seen from two seeds on")
    texts = [one for text in credit for one in split_methods(text)]
    methods = tuple(_method(loaded, one) for one in texts)
    if len({one.file for one in methods}) < len(methods) or len(methods) < 2:
        raise ConfigError(f"--credit: name two different methods or more; got {texts}")
    tiny = tuple(name for name, policy in recipe.policies.items() if policy.tiny is not None)
    named = Path(f"{loaded.run_folder}-compare")
    run_seeds = tuple(recipe.seed + number for number in range(seeds))
    pins = _pins(recipe)
    plan = Comparison(
        path, tuple(overrides), named, methods, run_seeds, tokens, score or _TEST, tiny, pins
    )
    for method in methods:
        check(_cell(plan, method, recipe.seed).loaded)
    check_packages(recipe)
    return plan


def compare(plan: Comparison) -> int:
    """Run the cells that are missing, write the page after each, and return the exit code.

    Raises:
        RunError: a cell failed or sampled too few tokens, or cells began with different weights.
    """
    plan.folder.mkdir(parents=True, exist_ok=True)
    plan = _with_models(plan)
    cells = [_cell(plan, method, seed) for seed in plan.seeds for method in plan.methods]
    for cell in cells:
        _refuse_other_cell(cell)
    for number, cell in enumerate(cells, start=1):
        if not cell.ended:
            _say(f"cell {number} of {len(cells)}: {cell.method.name}, seed {cell.seed}")
            code = _run(["train", str(plan.recipe), *cell.changes])
            if code == INTERRUPTED:
                _say("Stopped. The same command goes on.")
                return INTERRUPTED
            if code and not cell.ended:
                raise RunError(
                    f"the cell in {str(cell.folder.path)!r} ended with {code}; the same command goes on"
                )
        write(plan, cells)
    _say((plan.folder / "compare.md").read_text(encoding="utf-8"))
    return 0


def write(plan: Comparison, cells: Sequence[Cell]) -> dict[str, Any]:
    """Write `compare.json`, `compare.md` and `compare.png` of the cells that have ended.

    Raises:
        RunError: one sampled too few tokens, has no score, or began with other weights.
    """
    ended = [cell for cell in cells if cell.ended]
    starts = {json.dumps(read_origin(cell.folder.path).get("base_weights"), sort_keys=True) for cell in ended}  # fmt: skip
    if len(starts) > 1:
        raise RunError(
            f"cells in {str(plan.folder)!r} began with different weights, so they can't be compared: was a model or"
            " its demonstrations changed between them? Delete the folder, or give the recipe another 'name'"
        )
    told = told_of(
        [(cell.method.name, cell.seed, cell.lines) for cell in ended],
        methods=[one.name for one in plan.methods],
        seeds=plan.seeds,
        tokens=plan.tokens,
        score=plan.score,
    )
    write_text(plan.folder / "compare.json", json.dumps(told, indent=1) + "\n")
    write_text(plan.folder / "compare.md", page(told))
    draw(told, plan.folder / "compare.png")
    return told


def _method(loaded: LoadedRecipe, text: str) -> Method:
    credit, args = parse_method(text)
    algorithm = loaded.recipe.algorithm
    if algorithm is None:
        raise ConfigError("recipe: training needs 'algorithm'")
    if not args and credit == algorithm.credit:
        args = algorithm.credit_args  # the recipe's own method is as the recipe has it
    assigner = find_assigner(credit, args, folder=loaded.folder)
    changes = [
        f"algorithm.credit={json.dumps(credit)}",
        f"algorithm.credit_args={json.dumps(args)}",
    ]
    values = isinstance(assigner, StatefulAssigner) and assigner.needs_values
    if values and loaded.recipe.critic is None:
        changes.append("critic={}")
    if not values and loaded.recipe.critic is not None:
        changes.append("critic=null")
    if credit in BY_FORKS and algorithm.forks is None:
        changes.append("algorithm.forks={}")
    if credit in SHIPPED and credit not in BY_FORKS and algorithm.forks is not None:
        changes.append("algorithm.forks=null")
    return Method(method_name(credit, args), tuple(changes))


def _pins(recipe: Recipe) -> tuple[str, ...]:
    """What else depends on a cell's seed: the order of demonstrations."""
    return tuple(
        f"policies.{name}.warm_start.seed={recipe.seed}"
        for name, policy in recipe.policies.items()
        if policy.warm_start is not None and policy.warm_start.seed is None
    )


def _cell(plan: Comparison, method: Method, seed: int) -> Cell:
    folder = plan.folder / f"{method.file}-seed{seed}"
    changes = (
        *plan.overrides,
        *plan.pins,
        *method.changes,
        f"algorithm.sampled_tokens={plan.tokens}",
        f"seed={seed}",
        f"name={json.dumps(f'{plan.folder.name}-{folder.name}')}",
        f"folder={json.dumps(str(folder))}",
    )
    return Cell(method, seed, load_recipe(plan.recipe, changes), changes)


def _with_models(plan: Comparison) -> Comparison:
    """The comparison with its tiny policies built, by the recipe's own seed; their folders are kept in its own."""
    pins = list(plan.pins)
    for alias in plan.tiny:
        model = (plan.folder / "models" / alias).resolve()
        if not model.exists():
            draft = model.with_name(f".{alias}.part")
            shutil.rmtree(draft, ignore_errors=True)
            command = ["tiny", str(plan.recipe), *plan.overrides, "--policy", alias]
            code = _run([*command, "--out", str(draft)])
            if code == INTERRUPTED:
                raise SystemExit(INTERRUPTED)
            if code:
                raise RunError(f"the tiny policy {alias!r} could not be built: exit code {code}")
            draft.rename(model)
        pins += [f"policies.{alias}.tiny=null", f"policies.{alias}.model={json.dumps(str(model))}"]
        if load_recipe(plan.recipe, plan.overrides).recipe.policies[alias].accepts_unread:
            pins.append(f"policies.{alias}.unread_messages=accept")
    return replace(plan, pins=tuple(pins))


def _refuse_other_cell(cell: Cell) -> None:
    """A cell that was begun must be the one that is asked for, in its iterations too: schedules count them."""
    folder, recipe = cell.folder, cell.loaded.recipe
    folder.refuse_another(cell.loaded)
    if folder.recipe.exists():
        there = load_recipe(folder.recipe).recipe
        assert there.algorithm is not None
        assert recipe.algorithm is not None
        if there.algorithm.iterations != recipe.algorithm.iterations:
            raise ConfigError(
                f"the cell in {str(folder.path)!r} was begun with algorithm.iterations={there.algorithm.iterations},"
                " which its learning rate follows. Undo the change, or give the comparison another 'name'"
            )


def _run(arguments: Sequence[str]) -> int:
    """Run a command of ours to its end; its exit code, or `INTERRUPTED` where a signal has asked for the end.

    A Ctrl-C reaches it as it reaches this process; another signal is passed on.
    """
    process = subprocess.Popen([sys.executable, "-m", "lightningrl.cli", *arguments])
    asked: list[int] = []

    def pass_on(number: int, _: object) -> None:
        asked.append(number)
        if number == signal.SIGTERM:
            process.terminate()

    before = {one: signal.signal(one, pass_on) for one in (signal.SIGINT, signal.SIGTERM)}
    try:
        code = process.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return INTERRUPTED if asked else code


def _say(text: str) -> None:
    terminal.console().print(text, highlight=False, soft_wrap=True, markup=False)
