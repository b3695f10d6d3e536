"""The loop: iteration i is train(i), then publish(i), then score(i) and its line in the metrics.

Invariants (design, 2): the checkpoint of iteration i is whole on disk before the ledger commits i,
and i is committed before its version is published. So whatever is killed when, a new start goes on
from the newest checkpoint k: takes and metric lines after k are forgotten, what k still lacks
(publishing, scores, its line) is made up, and iteration k+1 finds its rollouts by their ids.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from lightningrl.curve import draw_curve
from lightningrl.errors import NotFound
from lightningrl.experience.forks import unforked
from lightningrl.experience.transition import Group
from lightningrl.gateway.control import GatewayClient
from lightningrl.guards import check_guards
from lightningrl.machine.clock import Clock
from lightningrl.metrics import best_iteration
from lightningrl.recipe import Algorithm, Recipe
from lightningrl.schema import Attempt, AttemptState, Mode, NewRollout, Progress, RolloutState
from lightningrl.store.base import RolloutQuery, Store
from lightningrl.traces import read_attempts, read_parts, read_traces
from lightningrl_verl.serving.probe import ProbeResult
from lightningrl_verl.serving.prompt_tokens import reused_share
from lightningrl_verl.training.batches import GREEDY, SAMPLED, Splits, scoring_rollouts
from lightningrl_verl.training.checkpoint import Checkpoints, State, policy_folder
from lightningrl_verl.training.checkup import SAMPLE, Checkup
from lightningrl_verl.training.collect import Collected, collect, collect_training
from lightningrl_verl.training.drift import with_gaps, write_drift
from lightningrl_verl.training.files import RunFiles
from lightningrl_verl.training.learn import (
    check_models,
    check_trainable,
    digest,
    flat_share,
    solved_share,
)
from lightningrl_verl.training.lessons import keep_lesson
from lightningrl_verl.training.live import CollectedLive, collect_live
from lightningrl_verl.training.metrics import Metrics, MetricsLog, has_ended
from lightningrl_verl.training.study import Credited, Study, Trainee
from lightningrl_verl.training.timing import Interval, Stopwatch
from lightningrl_verl.training.tokens import count_tokens
from lightningrl_verl.training.trackers import Trackers
from lightningrl_verl.worker.learner import Updated


class Watcher(Protocol):
    """Who is told what the loop is doing."""

    def begin(self, iteration: int) -> None:
        """An iteration begins."""
        ...

    def phase(self, name: str) -> None:
        """A phase of the iteration begins."""
        ...

    def say(self, text: str) -> None:
        """Something that the user should read happened."""
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
        files: RunFiles,
        *,
        store: Store,
        gateway: GatewayClient,
        trainees: Sequence[Trainee],
        study: Study,
        splits: Splits,
        records: Mapping[str, Sequence[Path]],
        watcher: Watcher,
        trackers: Trackers,
        clock: Clock,
    ) -> None:
        """Prepare a run; `records` are the files that say where the models came from, by alias."""
        assert recipe.algorithm is not None
        self._recipe = recipe
        self._algorithm: Algorithm = recipe.algorithm
        self._files = files
        self._store = store
        self._trainees = trainees
        self._study = study
        self._splits = splits
        self._records = records
        self._watcher = watcher
        self._trackers = trackers
        self._clock = clock
        self._log = MetricsLog(files.metrics)
        self._checkpoints = Checkpoints(files.checkpoints, keep=recipe.trainer.keep_checkpoints)
        self._history: tuple[tuple[int, str], ...] = ()
        self._credit_state: dict[str, Any] = {}
        self._checkup = Checkup(recipe, watcher.say)
        self._looked = False
        self._gateway = gateway
        self._unidentified = 0

    async def run(self, probed: Mapping[str, ProbeResult]) -> None:
        """Go on from the newest checkpoint to the last iteration.

        Args:
            probed: alias -> what the probe of the weights that its engine started with found.

        Raises:
            GuardTripped: the run shows signs of collapse; the same command goes on once the guard is
                changed.
        """
        done, metrics = await self._resume()
        if self._log.last_iteration < done:
            metrics |= self._probes(probed)
            self._watcher.begin(done)
            await self._score(done, metrics)
        while not has_ended(self._algorithm, self._log.lines):
            iteration = self._log.last_iteration + 1
            check_guards(self._log.lines, self._recipe.guards)
            self._watcher.begin(iteration)
            metrics = await self._train(iteration)
            await self._score(iteration, metrics)

    async def _resume(self) -> tuple[int, Metrics]:
        """Make store and metrics agree with the newest checkpoint."""
        found = self._checkpoints.newest()
        done = found[1].iteration if found else 0
        metrics: Metrics = dict(found[1].metrics) if found else {}
        self._history = found[1].history if found else ()
        self._credit_state = found[1].credit if found else self._study.initial_state
        await self._store.roll_back(self._recipe.name, after=done)
        if done:
            await self._commit_again(done)
        self._log.cut(after=done)
        return done, metrics

    async def _commit_again(self, done: int) -> None:
        """Commit what the newest checkpoint was trained on: the crash may have come between the two."""
        try:
            await self._store.commit(self._recipe.name, done)
        except NotFound:
            self._watcher.say(
                f"the store does not know what iteration {done}, whose checkpoint is the newest, was trained"
                " on: it is another store or an older copy, or the run was deleted there. Training goes on"
                " from the checkpoint; live rollouts of an older copy may be trained a second time."
            )

    async def _train(self, iteration: int) -> Metrics:
        watch = Stopwatch(self._clock)
        collected, live, reused = await self._collect(watch, iteration)
        if any(one.policy.sleeps for one in self._trainees):
            with self._phase(watch, "sleep"):
                for trainee in self._trainees:
                    await trainee.policy.sleep()
        with self._phase(watch, "credit"):
            taken = await self._store.take(
                self._recipe.name,
                iteration,
                min_group=self._algorithm.min_group,
                skip=(*collected.flat, *live.skipped, *collected.forked.skipped),
                failure_reward=self._algorithm.failure_reward,
            )
            groups = await read_traces(self._store, taken)
            await self._look(iteration)
            check_models(
                [trace.transitions for group in groups for trace in group.traces],
                self._recipe.policies,
            )
            credited = await self._study.credit(groups, self._credit_state, first=iteration == 1)
        self._checkup.calls(credited.lesson.calls)
        check_trainable(credited.lesson, iteration)
        metrics = dict(credited.lesson.metrics) | self._of_groups(groups, collected) | live.metrics
        metrics |= collected.forked.metrics | reused
        attempts = await self._attempts(iteration)
        metrics |= await count_tokens(self._store, groups, attempts)
        metrics["train/failed"] = await self._failed(iteration)
        metrics["train/unidentified_calls"] = await self._count_unidentified()
        with self._phase(watch, "update", verl=True):
            updates, updated = await self._update(credited, iteration)
        metrics |= updated
        self._history = (*self._history, (iteration, digest(taken)))
        self._credit_state = credited.state
        lesson = credited.lesson
        gaps = {alias: one.gaps for alias, one in updates.items()}
        write_drift(self._files, iteration, with_gaps(lesson.drift, lesson.rows, gaps))
        with self._phase(watch, "lesson"):
            await asyncio.to_thread(
                keep_lesson, self._recipe, self._files.path, iteration, credited, updates
            )
        with self._phase(watch, "checkpoint"):
            await self._checkpoint(iteration, metrics, watch)
        with self._phase(watch, "sync"):
            metrics |= await self._sync(updates)
        return metrics | watch.metrics(_intervals(attempts))

    async def _look(self, iteration: int) -> None:
        """Examine the first training rollouts of this start, those that failed included."""
        if self._looked:
            return
        self._looked = True
        query = RolloutQuery(
            run=self._recipe.name,
            iteration=iteration,
            mode=Mode.TRAIN,
            variant="",
            states=(RolloutState.SUCCEEDED, RolloutState.FAILED),
            descending=True,
            limit=SAMPLE,
        )
        found = await self._store.rollouts(query)
        self._checkup.rollouts(await read_attempts(self._store, found))

    async def _count_unidentified(self) -> int:
        """Model calls refused since the last iteration of this start, as nothing showed whose they are."""
        refused = await self._gateway.refused()
        before, self._unidentified = self._unidentified, refused.unidentified
        self._checkup.rollouts((), unidentified=refused.by_origin)
        # A server that was started again counts from zero.
        return self._unidentified - (before if before <= self._unidentified else 0)

    async def _collect(
        self, watch: Stopwatch, iteration: int
    ) -> tuple[Collected, CollectedLive, Metrics]:
        """Have the iteration's rollouts done; and what of their prompts engines had already."""
        before = [await one.policy.prompt_tokens() for one in self._trainees]
        with self._phase(watch, "collect"):
            collected = await collect_training(
                self._store,
                self._recipe,
                self._splits.train,
                iteration,
                on_progress=self._watcher.rollouts,
            )
            live = await self._collect_live(iteration)
        metrics: Metrics = {
            self._named(one, "engine/reused_share"): reused_share(
                earlier, await one.policy.prompt_tokens()
            )
            for one, earlier in zip(self._trainees, before, strict=True)
        }
        return collected, live, metrics

    def _of_groups(self, groups: Sequence[Group], collected: Collected) -> Metrics:
        """What the rewards of all groups say, those that dynamic sampling left out included."""
        rewards = [[trace.reward for trace in group.traces] for group in unforked(groups)]
        rewards += [list(of_group) for of_group in collected.flat.values()]
        metrics: Metrics = {
            "train/flat_groups": flat_share(rewards),
            "train/solved_groups": solved_share(rewards, self._log.lines),
        }
        if self._algorithm.further_tasks:
            metrics["train/further_tasks"] = collected.further
            metrics["train/groups_skipped"] = len(collected.flat)
        return metrics

    async def _update(
        self, credited: Credited, iteration: int
    ) -> tuple[dict[str, Updated], Metrics]:
        """Train each policy; what the updates of those that were changed gave, by alias, and the metrics of all."""
        updates: dict[str, Updated] = {}
        metrics: Metrics = {}
        for trainee in self._trainees:
            own, updated = await self._study.train(trainee, credited, iteration)
            metrics |= {self._named(trainee, name): one for name, one in own.items()}
            if updated is not None:
                updates[trainee.alias] = updated
        return updates, metrics

    async def _collect_live(self, iteration: int) -> CollectedLive:
        if self._recipe.live is None:
            return CollectedLive((), {})
        return await collect_live(
            self._store,
            self._recipe,
            {one.alias: one.version for one in self._trainees},
            iteration,
            on_progress=self._watcher.rollouts,
        )

    async def _sync(self, changed: Collection[str]) -> Metrics:
        """Have the engines of policies that were trained serve the new weights, and those that sleep theirs."""
        due = [one for one in self._trainees if one.alias in changed or one.policy.asleep]
        probed = {one.alias: await one.policy.sync(one.learner, one.version) for one in due}
        return self._probes(probed)

    def _probes(self, probed: Mapping[str, ProbeResult]) -> Metrics:
        return {
            self._named(one, "probe/max_abs_difference"): probed[one.alias].max_abs_difference
            for one in self._trainees
            if one.alias in probed
        }

    def _named(self, trainee: Trainee, name: str) -> str:
        """A metric of one policy: with its alias if there are several."""
        if len(self._trainees) == 1:
            return name
        group, _, rest = name.partition("/")
        return "/".join(filter(None, (group, trainee.alias, rest)))

    async def _checkpoint(self, iteration: int, metrics: Metrics, watch: Stopwatch) -> None:
        """Write the checkpoint, then commit the ledger."""
        state = State(
            iteration=iteration,
            versions={one.alias: one.version for one in self._trainees},
            credit=self._credit_state,
            metrics=metrics,
            history=self._history,
        )
        aliases = [one.alias for one in self._trainees]
        newest = self._checkpoints.newest()

        def save(folder: Path) -> None:
            with watch.phase("save", verl=True):
                for one in self._trainees:
                    own = policy_folder(folder, one.alias, aliases)
                    former = newest and policy_folder(newest[0], one.alias, aliases)
                    one.learner.save(own, former)
                    for record in self._records[one.alias]:
                        shutil.copy(record, own / "huggingface")

        best = best_iteration(self._log.lines)
        await self._trainees[0].learner.call(
            lambda _: self._checkpoints.write(state, save, best=best)
        )
        await self._store.commit(self._recipe.name, iteration)

    async def _score(self, iteration: int, metrics: Metrics) -> None:
        """Score validation where it is due, the test split at the end; then write the line."""
        versions = {self._named(one, "policy_version"): one.version for one in self._trainees}
        line: Metrics = {"iteration": iteration, **versions, **metrics}
        last = has_ended(self._algorithm, [*self._log.lines, line])
        due = last or iteration % self._recipe.validation.every == 0
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
        await self._trackers.log(line)
        self._watcher.end(line)
        if due and self._log.has_rewards:
            draw_curve(self._files.metrics, self._files.curve, self._recipe.name)

    async def _scores(self, mode: Mode, iteration: int, variant: str, name: str) -> Metrics:
        """Mean reward of a split under `name`, and how many of its rollouts failed.

        The mean is over the rollouts that succeeded.
        """
        tasks = self._splits.val if mode is Mode.VAL else self._splits.test
        rollouts = scoring_rollouts(self._recipe, tasks, mode, iteration, variant)
        progress = await collect(
            self._store,
            rollouts,
            on_progress=self._watcher.rollouts,
            failures_count=self._algorithm.failure_reward is not None,
        )
        if iteration == 0:
            await self._examine(rollouts)
        parts = await read_parts(self._store, [one.id for one in rollouts])
        return {
            name: progress.mean_reward,
            f"{name}_failed": progress.failed,
            **{
                f"{name.replace('/reward', '/part', 1)}/{part}": mean
                for part, mean in parts.items()
            },
        }

    async def _examine(self, rollouts: Sequence[NewRollout]) -> None:
        """Find out before the first iteration what is wrong, such as agents that call several models."""
        found = await self._store.rollouts(RolloutQuery(ids=tuple(one.id for one in rollouts)))
        records = await read_attempts(self._store, found)
        self._checkup.rollouts(records[::-1])
        check_models(
            [record.transitions for of_one in records for record in of_one], self._recipe.policies
        )

    async def _failed(self, iteration: int) -> int:
        progress = await self._store.progress(self._recipe.name, Mode.TRAIN, iteration, variant="")
        return progress.failed

    async def _attempts(self, iteration: int) -> list[Attempt]:
        """Of the iteration's rollouts, those that failed included."""
        rollouts = await self._store.rollouts(
            RolloutQuery(run=self._recipe.name, mode=Mode.TRAIN, iteration=iteration)
        )
        return await self._store.attempts([rollout.id for rollout in rollouts])

    def _phase(self, watch: Stopwatch, name: str, *, verl: bool = False) -> Any:
        self._watcher.phase(name)
        return watch.phase(name, verl=verl)


def _intervals(attempts: Sequence[Attempt]) -> list[Interval]:
    """When they ran; of one that was lost nobody knows."""
    return [
        (attempt.started_at, attempt.ended_at)
        for attempt in attempts
        if attempt.ended_at is not None and attempt.state is not AttemptState.LOST
    ]
