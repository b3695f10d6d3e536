"""What serves a policy: the seam between the loop and whoever generates.

Invariant: all endpoints of a policy hold the weights of one version, the one that `take_weights` was last
given, or none of them is let go.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from lightningrl.recipe import Recipe
from lightningrl.schema import Endpoint
from lightningrl_verl.serving.local_engine import LocalEngine
from lightningrl_verl.serving.managed_engines import ManagedEngines
from lightningrl_verl.serving.probe import EngineScore
from lightningrl_verl.serving.prompt_tokens import PromptTokens
from lightningrl_verl.serving.replicas import Replicas
from lightningrl_verl.serving.vllm_servers import VllmEngines
from lightningrl_verl.worker.learner import Learner


class Engines(Protocol):
    """The engines of one policy: one or more endpoints that hold the same weights."""

    @property
    def version(self) -> int:
        """Of the weights that they hold."""
        ...

    async def open(self) -> tuple[Endpoint, ...]:
        """Start serving; the endpoints answer when this returns. Called once.

        Raises:
            RunError: an engine does not come up.
        """
        ...

    @property
    def sleeps(self) -> bool:
        """Whether they share their devices' memory with the learner, and must sleep while it trains."""
        ...

    async def sleep(self) -> None:
        """Give that memory to the learner, until `take_weights`; the gateway lets no call through meanwhile.

        Nothing, of engines that share none.
        """
        ...

    async def take_weights(self, learner: Learner, version: int) -> None:
        """Replace the weights of every engine by the learner's; the gateway lets no call through meanwhile.

        Raises:
            RunError: an engine did not take them.
        """
        ...

    def scorers(self) -> Sequence[EngineScore]:
        """One per engine, for the probe: its log-probs under the weights that it holds.

        They may block, and are called on the learners' thread.
        """
        ...

    @property
    def can_tell(self) -> bool:
        """Whether they can say which weights they hold."""
        ...

    async def digests(self, names: Sequence[str]) -> Sequence[str]:
        """Of each engine's weights by these names, as `engine.weights.digest`; only of those that `can_tell`."""
        ...

    async def prompt_tokens(self) -> PromptTokens | None:
        """Of all requests since they were started. `None`: they don't say."""
        ...

    async def watch(self) -> None:
        """Never return; raise when an engine has died that can't be replaced.

        Raises:
            RunError: with the cause.
        """
        ...

    def close(self) -> None:
        """Stop serving, to the end; may be called before `open`, and from any thread."""
        ...


@dataclass(frozen=True)
class Trained:
    """Who trains a policy."""

    learner: Learner
    """With weights loaded."""
    thread: ThreadPoolExecutor
    """The learners' and the cluster's."""


def load_engines(
    recipe: Recipe,
    alias: str,
    trained: Trained | None,
    *,
    model: Path,
    version: int,
    place: Path,
    logs: Path,
) -> Engines:
    """The engines that a recipe asks for; they don't serve yet. Blocks.

    Args:
        recipe: the run's.
        alias: of the policy.
        trained: who trains it. `None`: nobody.
        model: Hugging Face folder of the weights.
        version: of those weights.
        place: folder of the weights that they serve, where engines need one; what is there is removed.
        logs: folder of what engine processes print.
    """
    # What a start that was killed has left, with whichever engines.
    shutil.rmtree(place, ignore_errors=True)
    servers = recipe.policies[alias].vllm
    if servers is not None:
        return VllmEngines(recipe, alias, servers, model=model, version=version, folder=place)
    if recipe.engine.managed:
        assert trained is not None, "recipes with others are refused"
        return ManagedEngines(recipe, alias, trained.learner, version, trained.thread)
    if recipe.engine.replicas > 1:
        return Replicas(recipe, alias, model=model, version=version, place=place, logs=logs)
    return LocalEngine(recipe, alias, model=model, version=version)
