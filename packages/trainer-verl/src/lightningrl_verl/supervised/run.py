"""A fine-tuning as a run of its own: iteration i is the i-th update, and its line in the metrics.

Invariant: a checkpoint of update i is whole on disk before the line of i is written, and a start goes on from the newest
one: lines after it are forgotten, and its updates are made again, the same as before.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Generator, Sequence
from pathlib import Path

from lightningrl.curve import draw_curve
from lightningrl.machine.clock import Clock
from lightningrl.recipe import Recipe
from lightningrl_verl.supervised.tuition import Tuition
from lightningrl_verl.training.checkpoint import Checkpoints, State
from lightningrl_verl.training.drift import write_drift
from lightningrl_verl.training.files import RunFiles
from lightningrl_verl.training.loop import Watcher
from lightningrl_verl.training.metrics import Metrics, MetricsLog
from lightningrl_verl.training.timing import Stopwatch
from lightningrl_verl.training.trackers import Trackers


class SupervisedRun:
    """One run, from wherever its folder says it stands."""

    def __init__(
        self,
        recipe: Recipe,
        files: RunFiles,
        alias: str,
        tuition: Tuition,
        *,
        records: Sequence[Path],
        watcher: Watcher,
        trackers: Trackers,
        clock: Clock,
    ) -> None:
        """Prepare.

        Args:
            recipe: the run's, with one policy.
            files: of the run.
            alias: the policy's.
            tuition: its learner must hold the newest checkpoint.
            records: files that say where the policy came from.
            watcher: is told what happens.
            trackers: are given each line.
            clock: measures.
        """
        self._recipe = recipe
        self._files = files
        self._alias = alias
        self._tuition = tuition
        self._records = records
        self._watcher = watcher
        self._trackers = trackers
        self._clock = clock
        self._log = MetricsLog(files.metrics)
        self._checkpoints = Checkpoints(files.checkpoints, keep=recipe.trainer.keep_checkpoints)

    async def run(self) -> None:
        """Go on from the newest checkpoint to the last update.

        Raises:
            RunError: training diverged, or a rank has died.
        """
        found = self._checkpoints.newest()
        done = found[1].iteration if found else 0
        self._log.cut(after=done)
        if self._log.last_iteration < done:
            self._watcher.begin(done)
            await self._end(dict(found[1].metrics) if found else await self._begin())
        for number in range(done + 1, self._tuition.course.updates + 1):
            self._watcher.begin(number)
            await self._end(await self._update(number))

    async def _begin(self) -> Metrics:
        """The line of the weights before any update; and the drift report, which holds for all of them."""
        material = self._tuition.material
        write_drift(self._files, 0, material.drift)
        sums = material.sums
        watch = Stopwatch(self._clock)
        with self._phase(watch, "score"):
            scored = await self._tuition.score()
        return {
            "iteration": 0,
            **scored,
            "sft/left_out_by_reason": dict(material.left_out),
            "drift/merged_share": sums.merged_share,
            "drift/breaks": sum(sums.breaks.values()),
            "drift/rendered_tokens": sums.rendered,
            **_seconds(watch),
        }

    async def _update(self, number: int) -> Metrics:
        watch = Stopwatch(self._clock)
        with self._phase(watch, "update"):
            line: Metrics = {"iteration": number, **await self._tuition.update(number)}
        if self._tuition.course.due(number):
            with self._phase(watch, "score"):
                line |= await self._tuition.score()
            with self._phase(watch, "checkpoint"):
                await self._checkpoint(number, line)
        return line | _seconds(watch)

    async def _checkpoint(self, number: int, line: Metrics) -> None:
        state = State(
            iteration=number, versions={self._alias: number}, credit={}, metrics=line, history=()
        )

        newest = self._checkpoints.newest()

        def save(folder: Path) -> None:
            self._tuition.learner.save(folder, newest and newest[0])
            for record in self._records:
                shutil.copy(record, folder / "huggingface")

        await self._tuition.learner.call(lambda _: self._checkpoints.write(state, save))

    async def _end(self, line: Metrics) -> None:
        self._log.append(line)
        await self._trackers.log(line)
        self._watcher.end(line)
        # Before the first update there may be no loss to draw.
        if line["iteration"] and self._tuition.course.due(line["iteration"]):
            draw_curve(self._files.metrics, self._files.curve, self._recipe.name)

    @contextlib.contextmanager
    def _phase(self, watch: Stopwatch, name: str) -> Generator[None]:
        self._watcher.phase(name)
        with watch.phase(name, verl=True):
            yield


def _seconds(watch: Stopwatch) -> Metrics:
    return {f"timing/{name}_seconds": round(value, 4) for name, value in watch.seconds.items()}
