"""A policy at the gateway: its engines, and their sync with whoever trains it.

Invariants:
- A version number is never used for two sets of weights: it rises by one with each update, and is
  published only when the checkpoint that holds its weights is on disk.
- Nothing is released on unknown weights: if a sync or its probe fails, the gateway keeps holding.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from lightningrl.gateway.control import GatewayClient
from lightningrl.recipe import Recipe
from lightningrl.schema import Endpoint, LiveTerms, Policy, RewriteRules
from lightningrl_verl.engine.load import DTYPES
from lightningrl_verl.serving.engines import Engines
from lightningrl_verl.serving.hold import Hold
from lightningrl_verl.serving.probe import ProbeResult, check_digests, held, probe
from lightningrl_verl.serving.prompt_tokens import PromptTokens
from lightningrl_verl.worker.learner import Learner

_PROBE_TOLERANCE = {"fp32": 1e-3, "bf16": 0.1}
"""Largest difference in nats; engine and trainer sum in different orders, which bf16 shows."""

_NOISE = 3.0
"""In bf16 the limit, as a multiple of what the first probe found of weights that are known to be the same."""


class ServedPolicy:
    """The engines of one policy, and its registration at the gateway."""

    def __init__(
        self,
        recipe: Recipe,
        alias: str,
        gateway: GatewayClient,
        engines: Engines,
        rules: RewriteRules,
    ) -> None:
        """Nothing is served yet; `rules` are what its chat template needs."""
        self._recipe = recipe
        self._alias = alias
        self._gateway = gateway
        self._engines = engines
        self._rules = rules
        self._hold = Hold(recipe, alias, gateway)
        self._noise: float | None = None
        """Difference that the first probe of this start found."""
        self.asleep = False
        """Whether it serves nobody before the next `sync`."""

    async def open(self, learner: Learner | None) -> ProbeResult | None:
        """Serve the engines, probe their weights, register them, let calls pass.

        Args:
            learner: who trains it, and must hold the same weights. `None`: nobody, and nothing is probed.

        Raises:
            RunError: an engine's log-probs are not the trainer's; nothing was registered.
        """
        endpoints = await self._engines.open()
        result = await self.probe(learner) if learner is not None else None
        version = self._engines.version
        await register(self._gateway, self._recipe, self._alias, endpoints, version, self._rules)
        return result

    @property
    def sleeps(self) -> bool:
        """Whether its engines must sleep while the learner trains."""
        return self._engines.sleeps

    async def sleep(self) -> None:
        """Hold the gateway and put engines to sleep that share their memory with the learner, until `sync`.

        Others go on.
        """
        if self.sleeps:
            await self._hold.begin()
            await self._engines.sleep()
            self.asleep = True

    async def sync(self, learner: Learner, version: int) -> ProbeResult:
        """Hold the gateway, have the engines take the weights, probe them, let calls pass under the version.

        Args:
            learner: who has the weights.
            version: of them; that of before if they are the same, as for engines that slept for nothing.

        Raises:
            RunError: an engine's log-probs are not the trainer's; calls stay held.
        """
        before = self._engines.version
        await self._hold.begin()
        await self._engines.take_weights(learner, version)
        result = await self.probe(learner)
        await self._hold.end(version, changed=version != before)
        self.asleep = False
        return result

    async def probe(self, learner: Learner) -> ProbeResult:
        """Compare every engine's log-probs with the trainer's; the result is the worst one's.

        Raises:
            RunError: they differ by more than `trainer.probe_tolerance`, or hold other weights.
        """
        if self._engines.can_tell:
            dtype = DTYPES[self._recipe.trainer.precision]
            holds = await learner.call(lambda one: held(one.named_parameters(), dtype))
            check_digests(holds, await self._engines.digests(holds.names))
        tolerance = self._tolerance(known=self._engines.can_tell)
        scorers = self._engines.scorers()
        found = await learner.call(
            lambda one: [probe(score, one, tolerance=tolerance) for score in scorers]
        )
        worst = max(found, key=lambda result: result.max_abs_difference)
        if self._noise is None:
            self._noise = worst.max_abs_difference
        return worst

    def _tolerance(self, *, known: bool) -> float:
        """Of the probe; `known`: whether it is known that engines hold the trainer's weights."""
        trainer = self._recipe.trainer
        if trainer.probe_tolerance is not None:
            return trainer.probe_tolerance
        usual = _PROBE_TOLERANCE[trainer.precision]
        if not known or trainer.precision == "fp32":
            return usual
        # What bf16 makes of the same weights depends on the model; it is measured once, and then expected.
        return math.inf if self._noise is None else max(usual, _NOISE * self._noise)

    async def prompt_tokens(self) -> PromptTokens | None:
        """What its engines have counted since they were started. `None`: they don't say."""
        return await self._engines.prompt_tokens()

    async def watch(self) -> None:
        """Never return; raise when an engine has died that can't be replaced.

        Raises:
            RunError: with the cause.
        """
        await self._engines.watch()

    def abandon(self) -> None:
        """Renew no hold any more: the run ends, and calls that wait are refused when it has run out."""
        self._hold.abandon()


async def register(
    gateway: GatewayClient,
    recipe: Recipe,
    alias: str,
    endpoints: Sequence[Endpoint],
    version: int,
    rules: RewriteRules,
) -> None:
    """Make the gateway answer for a policy; a hold that a killed trainer left behind ends here.

    Args:
        gateway: where.
        recipe: the run's.
        alias: of the policy.
        endpoints: what serves it.
        version: of the weights that they hold.
        rules: how requests are rewritten; of the chat template of one at a URL nothing is known.
    """
    settings = recipe.policies[alias]
    await gateway.register(
        Policy(
            name=alias,
            run=recipe.name,
            version=version,
            endpoints=tuple(endpoints),
            trainable=settings.trainable,
            replaces=settings.replaces,
            agents=settings.agents,
            rules=rules,
            refuse_unknown=recipe.gateway.unknown_fields == "refuse",
            max_model_len=settings.max_model_len if settings.url is None else None,
            live=_live_terms(recipe),
        )
    )
    await gateway.release(recipe.name, alias)


def _live_terms(recipe: Recipe) -> LiveTerms | None:
    if recipe.live is None:
        return None
    return LiveTerms(
        sampling=recipe.sampling.train,
        rewards=recipe.rewards,
        await_rewards=recipe.await_rewards,
        await_seconds=recipe.await_seconds,
    )
