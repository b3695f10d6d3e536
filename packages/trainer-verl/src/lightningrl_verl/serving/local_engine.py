"""One `torch` engine in the trainer's own process: a thread, and a loopback port."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

from lightningrl.recipe import Recipe
from lightningrl.schema import Endpoint
from lightningrl_verl.engine import EngineServer, serve_engine
from lightningrl_verl.engine.load import engine_settings, load_engine
from lightningrl_verl.serving.probe import EngineScore
from lightningrl_verl.serving.prompt_tokens import PromptTokens
from lightningrl_verl.worker.learner import Learner

_ALIVE_SECONDS = 1.0
"""How often the engine is asked whether it still works."""


class LocalEngine:
    """`Engines` of one, in this process."""

    sleeps = False
    can_tell = True

    def __init__(self, recipe: Recipe, alias: str, *, model: Path, version: int) -> None:
        """Load the weights in the Hugging Face folder `model`."""
        self._alias = alias
        self._parser = recipe.policies[alias].tool_parser
        self._engine = load_engine(model, engine_settings(recipe, alias), version)
        self._server: EngineServer | None = None

    @property
    def version(self) -> int:
        """Of the weights that it holds."""
        return self._engine.version

    async def open(self) -> tuple[Endpoint, ...]:
        """Serve on a loopback port."""
        self._engine.start()
        self._server = serve_engine(self._engine, model_name=self._alias, parser=self._parser)
        return (Endpoint(f"{self._server.url}/v1"),)

    async def sleep(self) -> None:
        """Nothing: their memory is their own."""

    async def take_weights(self, learner: Learner, version: int) -> None:
        """Swap the learner's weights in, between two decode steps."""
        weights = await learner.call(lambda one: list(one.named_parameters()))
        await asyncio.to_thread(self._engine.swap_weights, weights, version)

    def scorers(self) -> Sequence[EngineScore]:
        """The engine's own forward pass."""
        return (self._engine.score,)

    async def digests(self, names: Sequence[str]) -> Sequence[str]:
        """Of the engine's copy."""
        return (await asyncio.to_thread(self._engine.digest, names),)

    async def prompt_tokens(self) -> PromptTokens:
        """Of its statistics."""
        stats = self._engine.stats()
        return PromptTokens(stats.prefill_tokens, stats.reused_tokens)

    async def watch(self) -> None:
        """Never return; raise when the engine has died.

        Raises:
            EngineError: with the cause.
        """
        while True:
            await asyncio.sleep(_ALIVE_SECONDS)
            self._engine.check_alive()

    def close(self) -> None:
        """Stop serving."""
        if self._server is not None:
            self._server.close()
        self._engine.close()
