"""Who trains one policy: verl's workers, on a thread, so that the event loop stays free.

Invariant: all learners of a process share one thread, so that one worker of verl is busy at a time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch

from lightningrl.experience.drift import Gap, log_prob_gaps
from lightningrl.experience.trajectory import Row
from lightningrl.recipe import Algorithm, Critic
from lightningrl_verl.worker.backend import VerlBackend
from lightningrl_verl.worker.backend_config import BackendConfig
from lightningrl_verl.worker.batch import FloatArray
from lightningrl_verl.worker.critic import VerlCritic
from lightningrl_verl.worker.importance import importance_weights
from lightningrl_verl.worker.ranks import Launcher, ThisProcess

_Result = TypeVar("_Result")

_CRITIC = "critic"
"""Where a checkpoint keeps the critic."""


@dataclass(frozen=True)
class Updated:
    """What one update gave."""

    metrics: dict[str, float]
    """Of the backend, and of importance weights."""
    gaps: list[Gap]
    """Of each row, by the weights before the update."""
    log_probs: list[FloatArray]
    """Of each row (T,) float32, by the weights before the update; 0 where not trained."""


class Learner:
    """One policy's weights and optimiser, and its critic where it has one."""

    def __init__(
        self,
        thread: ThreadPoolExecutor,
        algorithm: Algorithm | None,
        launcher: Launcher | None = None,
    ) -> None:
        """Prepare.

        Args:
            thread: of one worker.
            algorithm: of the recipe. `None`: it imitates, and makes no RL update.
            launcher: where the ranks run. `None`: there is one, in this process.
        """
        self._thread = thread
        self._algorithm = algorithm
        self._weighs = algorithm is not None and algorithm.importance not in (None, "none")
        self._launcher = launcher or ThisProcess()
        self._backend: VerlBackend | None = None
        self._critic: VerlCritic | None = None

    @property
    def backend(self) -> VerlBackend:
        """The policy; only what `call` runs may use it."""
        assert self._backend is not None, "call `start` first"
        return self._backend

    @property
    def critic(self) -> VerlCritic:
        """The critic; only what `call` runs may use it."""
        assert self._critic is not None, "there is no critic"
        return self._critic

    async def start(
        self, config: BackendConfig, critic: Critic | None, checkpoint: Path | None, threads: int
    ) -> bool:
        """Load policy and critic, from a checkpoint if there is one.

        Returns:
            False if another number of ranks wrote it, so that optimisers' moments begin anew.
        """

        def build() -> bool:
            torch.set_num_threads(threads)
            if critic is not None:
                self._critic = VerlCritic(config, critic, self._launcher)
            self._backend = VerlBackend(config, self._launcher)
            if checkpoint is None:
                return True
            # The policy after the critic: its random states are those that count.
            exact = self._critic is None or self._critic.load(checkpoint / _CRITIC)
            return self._backend.load(checkpoint) and exact

        return await asyncio.get_running_loop().run_in_executor(self._thread, build)

    async def call(self, function: Callable[[VerlBackend], _Result]) -> _Result:
        """Run `function` on the learners' thread; calls run one after the other."""
        return await asyncio.get_running_loop().run_in_executor(
            self._thread, function, self.backend
        )

    async def values(self, rows: Sequence[Row]) -> list[list[float]]:
        """The critic's value of each span; no rows give none."""
        return await self.call(lambda _: self.critic.values(rows)) if rows else []

    async def fit(
        self,
        rows: Sequence[Row],
        values: Sequence[Sequence[float]],
        targets: Sequence[Sequence[float]],
    ) -> dict[str, float]:
        """Train the critic; see `VerlCritic.update`."""
        return await self.call(lambda _: self.critic.update(rows, values, targets))

    async def update(self, rows: Sequence[Row]) -> Updated:
        """Train the policy once; see `VerlBackend.update`."""
        return await self.call(lambda one: self._update(one, rows))

    def _update(self, backend: VerlBackend, rows: Sequence[Row]) -> Updated:
        assert self._algorithm is not None, "it imitates"
        of_engine = [row.logprobs for row in rows]
        if not self._weighs and backend.scores_in_update:
            metrics, current = backend.update_and_score(rows, of_engine)
            return Updated(metrics, log_prob_gaps(rows, current), current)
        current = backend.log_probs(rows)
        gaps = log_prob_gaps(rows, current)
        if not self._weighs:
            return Updated(backend.update(rows, of_engine), gaps, current)
        weights, metrics = importance_weights(rows, current, self._algorithm)
        return Updated({**backend.update(rows, current, weights), **metrics}, gaps, current)

    async def imitate(self, rows: Sequence[Row]) -> dict[str, float]:
        """Take one supervised step; see `VerlBackend.imitate`."""
        return await self.call(lambda one: one.imitate(rows))

    async def surprise(self, rows: Sequence[Row]) -> float:
        """Minus the mean log-prob of the rows' trained tokens, of which there is at least one; nats."""
        scored = await self.call(lambda one: one.log_probs(rows, 1.0))
        return -float(sum(one.sum() for one in scored)) / sum(row.trained_tokens for row in rows)

    def save(self, folder: Path, former: Path | None) -> None:
        """Write what `start` loads; on the learners' thread.

        Args:
            folder: to write.
            former: the same of the checkpoint before. `None`: there is none.
        """
        self.backend.save(folder, former)
        if self._critic is not None:
            self._critic.save(folder / _CRITIC)
