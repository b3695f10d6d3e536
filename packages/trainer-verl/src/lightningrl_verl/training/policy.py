"""The trained policy on this machine: verl's worker, the engine that serves it, and the sync between.

Invariants:
- A version number is never used for two sets of weights: version i is the weights of iteration i,
  and it is published only when the checkpoint of iteration i is on disk.
- Nothing is released on unknown weights: if a sync or its probe fails, the gateway keeps holding.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from lightningrl.errors import ConfigError
from lightningrl.gateway.control import GatewayClient
from lightningrl.recipe import Engine, PolicyRecipe, Recipe, Trainer
from lightningrl.schema import Endpoint, Policy
from lightningrl.trajectory import Row
from lightningrl_verl.backend import VerlBackend
from lightningrl_verl.backend_config import BackendConfig
from lightningrl_verl.engine import EngineServer, TorchEngine, serve_engine
from lightningrl_verl.probe import ProbeResult, probe
from lightningrl_verl.quiet import without_progress_bars

_Result = TypeVar("_Result")

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}

_PROBE_TOLERANCE = {"fp32": 1e-3, "bf16": 0.1}
"""Largest difference in nats; engine and trainer sum in different orders, which bf16 shows."""

_ALIVE_SECONDS = 1.0
"""How often the engine is asked whether it still works."""


class Learner:
    """verl's worker on a thread of its own, so that the event loop stays free."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="verl")
        self._backend: VerlBackend | None = None

    @property
    def backend(self) -> VerlBackend:
        """The backend; only `call` may use it."""
        assert self._backend is not None, "call `start` first"
        return self._backend

    async def start(self, config: BackendConfig, checkpoint: Path | None, threads: int) -> None:
        """Load the weights, from a checkpoint if there is one."""

        def build() -> None:
            torch.set_num_threads(threads)
            self._backend = VerlBackend(config)
            if checkpoint is not None:
                self._backend.load(checkpoint)

        await asyncio.get_running_loop().run_in_executor(self._thread, build)

    async def call(self, function: Callable[[VerlBackend], _Result]) -> _Result:
        """Run `function` on the learner's thread; calls run one after the other."""
        return await asyncio.get_running_loop().run_in_executor(
            self._thread, function, self.backend
        )

    async def update(self, rows: Sequence[Row]) -> dict[str, float]:
        """One update on rows that the current weights sampled."""
        return await self.call(lambda one: one.update(rows, [row.logprobs for row in rows]))

    def close(self) -> None:
        """End the thread, after what it is doing."""
        self._thread.shutdown(wait=True)


class ServedPolicy:
    """The engine of one policy, and its registration at the gateway."""

    def __init__(
        self, recipe: Recipe, alias: str, gateway: GatewayClient, *, model: Path, version: int
    ) -> None:
        self._recipe = recipe
        self._alias = alias
        self._gateway = gateway
        self.engine = load_engine(
            model, recipe.policies[alias], recipe.engine, recipe.trainer, version
        )
        self._server: EngineServer | None = None

    async def open(self, learner: Learner) -> ProbeResult:
        """Serve the engine on a loopback port, probe its weights, register them, let calls pass.

        A hold that a killed trainer left behind ends here.

        Raises:
            RunError: the engine's log-probs are not the trainer's; nothing was registered.
        """
        settings = self._recipe.policies[self._alias]
        self.engine.start()
        self._server = serve_engine(
            self.engine, model_name=self._alias, parser=settings.tool_parser
        )
        result = await self.probe(learner)
        await self._gateway.register(
            Policy(
                name=self._alias,
                run=self._recipe.name,
                version=self.engine.version,
                endpoints=(Endpoint(f"{self._server.url}/v1"),),
                trainable=settings.trainable,
                replaces=settings.replaces,
                agents=settings.agents,
            )
        )
        await self._gateway.release(self._recipe.name, self._alias)
        return result

    async def sync(self, learner: Learner, version: int) -> ProbeResult:
        """Hold the gateway, swap the weights in, probe them, publish the version.

        Raises:
            RunError: the engine's log-probs are not the trainer's; calls stay held.
        """
        run, settings = self._recipe.name, self._recipe.gateway
        await self._gateway.hold(
            run,
            self._alias,
            hold_seconds=settings.hold_seconds,
            drain_seconds=settings.drain_seconds,
        )
        weights = await learner.call(lambda one: list(one.named_parameters()))
        await asyncio.to_thread(self.engine.swap_weights, weights, version)
        result = await self.probe(learner)
        await self._gateway.publish(run, self._alias, version)
        return result

    async def probe(self, learner: Learner) -> ProbeResult:
        """Compare the engine's log-probs with the trainer's.

        Raises:
            RunError: they differ by more than `trainer.probe_tolerance`.
        """
        trainer = self._recipe.trainer
        tolerance = trainer.probe_tolerance or _PROBE_TOLERANCE[trainer.dtype]
        return await learner.call(lambda one: probe(self.engine.score, one, tolerance=tolerance))

    async def watch(self) -> None:
        """Never return; raise when the engine has died.

        Raises:
            EngineError: with the cause.
        """
        while True:
            await asyncio.sleep(_ALIVE_SECONDS)
            self.engine.check_alive()

    def close(self) -> None:
        """Stop serving."""
        if self._server is not None:
            self._server.close()
        self.engine.close()


def backend_config(recipe: Recipe, model: Path) -> BackendConfig:
    """The recipe's part that concerns verl.

    Raises:
        ConfigError: `optimiser` or `algorithm` is missing.
    """
    optimiser, algorithm = recipe.optimiser, recipe.algorithm
    if optimiser is None or algorithm is None:
        raise ConfigError("recipe: training needs the sections 'optimiser' and 'algorithm'")
    return BackendConfig(
        model_path=str(model),
        device=recipe.trainer.device,
        dtype=recipe.trainer.dtype,
        temperature=recipe.sampling.train.temperature,
        learning_rate=optimiser.learning_rate,
        total_iterations=algorithm.iterations,
        lr_schedule=optimiser.schedule,
        min_lr_ratio=optimiser.min_lr_ratio,
        betas=optimiser.betas,
        weight_decay=optimiser.weight_decay,
        grad_clip=optimiser.grad_clip,
        clip_low=optimiser.clip_low,
        clip_high=optimiser.clip_high,
        entropy_coeff=optimiser.entropy_coeff,
        max_tokens_per_micro_batch=recipe.trainer.max_tokens_per_micro_batch,
        warmup=optimiser.warmup,
        ppo_epochs=optimiser.ppo_epochs,
        mini_batches=optimiser.mini_batches,
        use_kl_loss=optimiser.kl_coeff > 0,
        kl_coef=optimiser.kl_coeff,
        seed=recipe.seed,
        overrides=recipe.verl,
    )


def load_engine(
    model: Path, policy: PolicyRecipe, settings: Engine, trainer: Trainer, version: int
) -> TorchEngine:
    """An engine for a Hugging Face folder, not started yet."""
    with without_progress_bars():
        weights: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            model, dtype=_DTYPES[trainer.dtype], attn_implementation="sdpa"
        )
    weights.to(torch.device(trainer.device))  # pyright: ignore[reportArgumentType] - transformers' wrapper hides `self`
    return TorchEngine(
        weights,
        AutoTokenizer.from_pretrained(model),
        slots=settings.slots,
        max_model_len=policy.max_model_len,
        threads=settings.threads,
        version=version,
    )
