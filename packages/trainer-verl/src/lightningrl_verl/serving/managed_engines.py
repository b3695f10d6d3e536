"""Engines in a Ray cluster that verl starts, puts to sleep, gives weights and wakes up."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

from lightningrl.errors import RunError
from lightningrl.recipe import Recipe
from lightningrl.schema import Endpoint
from lightningrl_verl.serving.http_engine import HttpEngine
from lightningrl_verl.serving.probe import EngineScore
from lightningrl_verl.worker.backend_config import BackendConfig
from lightningrl_verl.worker.learner import Learner

if TYPE_CHECKING:
    from lightningrl_verl.cluster.ray_engines import RayEngines

_Result = TypeVar("_Result")


class ManagedEngines:
    """`Engines` of one policy, whose ranks send them their weights."""

    can_tell = False

    def __init__(
        self, recipe: Recipe, alias: str, learner: Learner, version: int, thread: ThreadPoolExecutor
    ) -> None:
        """Prepare; nothing starts before `open`.

        Args:
            recipe: the run's.
            alias: of the policy.
            learner: whose ranks hold its weights.
            version: of those.
            thread: the learners' and the cluster's.
        """
        self.version = version
        """Of the weights that they hold."""
        self.sleeps = recipe.engine.placement == "colocated"
        self._what = f"{recipe.engine.backend} engine"
        self._alias = alias
        self._learner = learner
        self._thread = thread
        self._engines: RayEngines | None = None
        self._asked: list[HttpEngine] = []
        self._asleep = False

    async def open(self) -> tuple[Endpoint, ...]:
        """Start them, and give them the learner's weights.

        Raises:
            RunError: one does not come up, or takes no weights.
        """
        self._engines = await self._on_thread(lambda: _start(self._learner))
        self._asked = [HttpEngine(self._what, url, self._alias) for url in self._engines.urls]
        await self.take_weights(self._learner, self.version)
        return tuple(Endpoint(f"{one.url}/v1") for one in self._asked)

    async def sleep(self) -> None:
        """Give the devices' memory to the ranks, until `take_weights`.

        Raises:
            RunError: one has died.
        """
        if self.sleeps and not self._asleep:
            await self._on_thread(self._started.sleep)
            self._asleep = True

    async def take_weights(self, learner: Learner, version: int) -> None:  # noqa: ARG002 # theirs are the same ranks
        """Have the ranks send their weights; whoever slept is awake afterwards.

        Raises:
            RunError: an engine has died, or refuses them.
        """
        await self.sleep()
        await self._on_thread(lambda: self._started.take_weights(version))
        self._asleep = False
        self.version = version

    def scorers(self) -> Sequence[EngineScore]:
        """One per engine, over HTTP."""
        return [one.score for one in self._asked]

    async def digests(self, names: Sequence[str]) -> Sequence[str]:
        """Not asked for: they can't tell."""
        raise NotImplementedError

    async def prompt_tokens(self) -> None:
        """Theirs are not asked for."""

    async def watch(self) -> None:
        """Never return; raise when an engine has died, or no longer answers.

        Raises:
            RunError: with what is known of it.
        """
        await asyncio.gather(self._started.watch(), *(one.watch() for one in self._asked))

    def close(self) -> None:
        """End them."""
        if self._engines is not None:
            self._engines.close()

    @property
    def _started(self) -> RayEngines:
        assert self._engines is not None, "call `open` first"
        return self._engines

    async def _on_thread(self, function: Callable[[], _Result]) -> _Result:
        return await asyncio.get_running_loop().run_in_executor(self._thread, function)


def _start(learner: Learner) -> RayEngines:
    # Only now: a run without a cluster has no use for Ray.
    from lightningrl_verl.cluster.ray_engines import RayEngines
    from lightningrl_verl.cluster.ray_ranks import RayModel

    ranks = learner.backend.ranks
    if not isinstance(ranks, RayModel):
        raise RunError("verl manages engines in a Ray cluster only; set 'cluster: ray'")
    config: BackendConfig = learner.backend.config
    return RayEngines(ranks, config)
