"""The loop: iteration i is train(i), then publish(i), then score(i) and its line in the metrics.

Invariants (design, 2): the checkpoint of iteration i is whole on disk before the ledger commits i,
and i is committed before its version is published. So whatever is killed when, a new start goes on
from the newest checkpoint k: takes and metric lines after k are forgotten, what k still lacks
(publishing, scores, its line) is made up, and iteration k+1 finds its rollouts by their ids.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from lightningrl.clock import Clock
from lightningrl.credit import CreditAssigner
from lightningrl.curve import draw_curve
from lightningrl.recipe import Algorithm, Recipe
from lightningrl.schema import AttemptState, Mode, NewRollout, Progress
from lightningrl.store.base import RolloutQuery, Store
from lightningrl.traces import read_traces
from lightningrl_verl.probe import ProbeResult
from lightningrl_verl.training.batches import (
    GREEDY,
    SAMPLED,
    Splits,
    scoring_rollouts,
    training_rollouts,
)
from lightningrl_verl.training.checkpoint import Checkpoints, State
from lightningrl_verl.training.collect import collect
from lightningrl_verl.training.folder import RunFolder
from lightningrl_verl.training.learn import (
    check_models,
    digest,
    has_regulariser,
    prepare,
    update_drift,
)
from lightningrl_verl.training.metrics import Metrics, MetricsLog
from lightningrl_verl.training.policy import Learner, ServedPolicy
from lightningrl_verl.training.timing import Interval, Stopwatch


class Watcher(Protocol):
    """Who is told what the loop is doing."""

    def begin(self, iteration: int) -> None:
        """An iteration begins."""
        ...

    def phase(self, name: str) -> None:
        """A phase of the iteration begins."""
        ...

    def rollouts(self, progress: Progress) -> None:
        """The rollouts being collected or scored moved on."""
        ...

    def end(self, metrics: Metrics) -> None:
        """An iteration ended, with the line that it has in the metrics."""
        ...


class TrainingLoop:
    """One run, from wherever its folder says it stands."""

    def __init__(
        self,
        recipe: Recipe,
        folder: RunFolder,
        *,
        store: Store,
        learner: Learner,
        policy: ServedPolicy,
        splits: Splits,
        assigner: CreditAssigner,
        record: Path,
        watcher: Watcher,
        clock: Clock,
    ) -> None:
        """Prepare a run; `record` is the file that says what a tiny policy is, where it is one."""
        assert recipe.algorithm is not None
        self._recipe = recipe
        self._algorithm: Algorithm = recipe.algorithm
        self._folder = folder
        self._store = store
        self._learner = learner
        self._policy = policy
        self._splits = splits
        self._assigner = assigner
        self._record = record
        self._watcher = watcher
        self._clock = clock
        self._log = MetricsLog(folder.metrics)
        self._checkpoints = Checkpoints(folder.checkpoints, keep=recipe.trainer.keep_checkpoints)
        self._history: tuple[tuple[int, str], ...] = ()

    async def run(self, probed: ProbeResult) -> None:
        """Go on from the newest checkpoint to the last iteration.

        Args:
            probed: what the probe of the weights that the engine started with found.
        """
        done, metrics = await self._resume()
        if self._log.last_iteration < done:
            metrics["probe/max_abs_difference"] = probed.max_abs_difference
            self._watcher.begin(done)
            await self._score(done, metrics)
        for iteration in range(done + 1, self._algorithm.iterations + 1):
            self._watcher.begin(iteration)
            metrics = await self._train(iteration)
            await self._score(iteration, metrics)

    async def _resume(self) -> tuple[int, Metrics]:
        """Make store and metrics agree with the newest checkpoint."""
        found = self._checkpoints.newest()
        done = found[1].iteration if found else 0
        metrics: Metrics = dict(found[1].metrics) if found else {}
        self._history = found[1].history if found else ()
        await self._store.roll_back(self._recipe.name, after=done)
        if done:
            await self._store.commit(self._recipe.name, done)
        self._log.cut(after=done)
        return done, metrics

    async def _train(self, iteration: int) -> Metrics:
        watch = Stopwatch(self._clock)
        with self._phase(watch, "collect"):
            await self._collect(training_rollouts(self._recipe, self._splits.train, iteration))
        with self._phase(watch, "credit"):
            taken = await self._store.take(
                self._recipe.name, iteration, min_group=self._algorithm.min_group
            )
            groups = await read_traces(self._store, taken)
            check_models(groups, self._recipe.policies)
            lesson = prepare(
                groups,
                self._assigner,
                self._algorithm.credit_args,
                keep_all=has_regulariser(self._recipe),
            )
        metrics: Metrics = dict(lesson.metrics)
        metrics["train/failed"] = await self._failed(iteration)
        if lesson.rows:
            with self._phase(watch, "update", verl=True):
                updated = await self._learner.update(lesson.rows)
            metrics |= {f"actor/{name}": value for name, value in updated.items()}
        self._history = (*self._history, (iteration, digest(taken)))
        with self._phase(watch, "checkpoint"):
            await self._checkpoint(iteration, metrics, watch)
        self._write_drift(update_drift(self._read_drift(), iteration, lesson))
        with self._phase(watch, "sync"):
            probed = await self._policy.sync(self._learner, iteration)
        metrics["probe/max_abs_difference"] = probed.max_abs_difference
        return metrics | watch.metrics(await self._attempts(iteration))

    async def _checkpoint(self, iteration: int, metrics: Metrics, watch: Stopwatch) -> None:
        """Write the checkpoint, then commit the ledger."""
        state = State(iteration=iteration, metrics=metrics, history=self._history)

        def save(folder: Path) -> None:
            with watch.phase("save", verl=True):
                self._learner.backend.save(folder)
            if self._record.exists():
                shutil.copy(self._record, folder / "huggingface")

        await self._learner.call(lambda _: self._checkpoints.write(state, save))
        await self._store.commit(self._recipe.name, iteration)

    async def _score(self, iteration: int, metrics: Metrics) -> None:
        """Score validation where it is due, the test split at the end; then write the line."""
        last = iteration == self._algorithm.iterations
        due = last or iteration % self._recipe.validation.every == 0
        line: Metrics = {"iteration": iteration, "policy_version": iteration, **metrics}
        watch = Stopwatch(self._clock)
        if due and self._splits.val:
            with self._phase(watch, "validate"):
                line |= await self._scores(Mode.VAL, iteration, GREEDY, "val/reward")
                if self._recipe.validation.sampled:
                    line |= await self._scores(Mode.VAL, iteration, SAMPLED, "val/reward_sampled")
        if last and self._splits.test:
            with self._phase(watch, "test"):
                line |= await self._scores(Mode.TEST, iteration, GREEDY, "test/reward")
        line |= {f"timing/{name}_seconds": round(s, 4) for name, s in watch.seconds.items()}
        self._log.append(line)
        self._watcher.end(line)
        if due and self._log.has_rewards:
            draw_curve(self._folder.metrics, self._folder.curve, self._recipe.name)

    async def _scores(self, mode: Mode, iteration: int, variant: str, name: str) -> Metrics:
        """Mean reward of a split under `name`, and how many of its rollouts failed.

        The mean is over the rollouts that succeeded.
        """
        tasks = self._splits.val if mode is Mode.VAL else self._splits.test
        rollouts = scoring_rollouts(self._recipe, tasks, mode, iteration, variant)
        progress = await self._collect(rollouts)
        return {name: progress.mean_reward, f"{name}_failed": progress.failed}

    async def _collect(self, rollouts: Sequence[NewRollout]) -> Progress:
        return await collect(self._store, rollouts, on_progress=self._watcher.rollouts)

    async def _failed(self, iteration: int) -> int:
        progress = await self._store.progress(self._recipe.name, Mode.TRAIN, iteration)
        return progress.failed

    async def _attempts(self, iteration: int) -> list[Interval]:
        """When attempts of the iteration ran, those that failed included."""
        rollouts = await self._store.rollouts(
            RolloutQuery(run=self._recipe.name, mode=Mode.TRAIN, iteration=iteration)
        )
        attempts = await self._store.attempts([rollout.id for rollout in rollouts])
        return [
            (attempt.started_at, attempt.ended_at)
            for attempt in attempts
            if attempt.ended_at is not None and attempt.state is not AttemptState.LOST
        ]

    def _phase(self, watch: Stopwatch, name: str, *, verl: bool = False) -> Any:
        self._watcher.phase(name)
        return watch.phase(name, verl=verl)

    def _read_drift(self) -> dict[str, Any]:
        if not self._folder.drift.exists():
            return {}
        return json.loads(self._folder.drift.read_text(encoding="utf-8"))

    def _write_drift(self, drift: Mapping[str, Any]) -> None:
        draft = self._folder.drift.with_suffix(".json.new")
        draft.write_text(json.dumps(drift, indent=1) + "\n", encoding="utf-8")
        draft.replace(self._folder.drift)
