"""A recipe as a whole, with what types can't say about it."""

from __future__ import annotations

import math
from typing import Any, Literal

import msgspec

from lightningrl.errors import ConfigError
from lightningrl.recipe.algorithm import (
    FORK_RULES,
    Algorithm,
    Critic,
    Guards,
    Optimiser,
    StepReward,
)
from lightningrl.recipe.data import Data, Live
from lightningrl.recipe.engines import check_engines
from lightningrl.recipe.policy import PolicyRecipe, SamplingRecipe, Validation
from lightningrl.recipe.processes import Engine, GatewayRecipe, Runner, Trainer
from lightningrl.recipe.section import Section
from lightningrl.schema import RewardsFrom
from lightningrl.user_input.names import suggest
from lightningrl.user_input.patterns import compiled

_OUTLASTS = 1.5
"""A hold over its drain, so that a third of its lease is left for the renewal."""


class Recipe(Section, frozen=True):
    """One training run."""

    name: str
    """The run's name; its folder is `runs/NAME` unless `folder` says otherwise."""
    folder: str | None = None
    """The run's folder, relative to the working directory."""
    seed: int = 0
    agent: str | None = None
    """`module:attribute`: a callable, an agent object, or a factory of one. Not needed where there is no `algorithm`
    and a policy has a `warm_start`: `lightningrl sft` runs no agent."""
    command: tuple[str, ...] | None = None
    """Instead of `agent`: a program and its arguments, in any language."""
    input: str | None = None
    """`module:function`: task -> the agent's input. `None`: the task itself."""
    reward: str | None = None
    """`module:function` `(task, output, trace) -> float`. `None`: the agent returns its reward."""
    rewards: RewardsFrom = RewardsFrom.JUDGED
    """`judged`: only the runner rewards. `emitted`: the agent may post rewards over HTTP as well."""
    step_rewards: tuple[StepReward, ...] = ()
    """Rules whose values are added to the rewards of steps before credit is assigned."""
    await_rewards: tuple[str, ...] = ()
    """Names of rewards without which a rollout isn't complete, such as a user's late feedback. With
    `final` among them nothing needs to reward the rollout while it runs."""
    await_seconds: float | None = None
    """How long after its success a rollout awaits them; then it is complete with the rewards that it has,
    and without a final one it is not trained. `None`: for as long as it takes."""
    data: Data | None = None
    live: Live | None = None
    """Train on live rollouts as well, or alone. `None`: on tasks alone."""
    policies: dict[str, PolicyRecipe] = msgspec.field(default_factory=dict)
    algorithm: Algorithm | None = None
    optimiser: Optimiser | None = None
    critic: Critic | None = None
    """For credit that needs values, such as `gae`."""
    sampling: SamplingRecipe = SamplingRecipe()
    validation: Validation = Validation()
    guards: Guards = Guards()
    trackers: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = ()
    """Where the metrics are shown as well; on this machine, unless the environment says otherwise."""
    cluster: Literal["none", "ray"] = "none"
    """Where the trainer's ranks run: `none`, there is one, in the trainer's process; `ray`, in a Ray cluster."""
    cluster_address: str | None = None
    """`HOST:PORT` of the head of a Ray cluster, or `auto` on one of its machines. `None`: a Ray is started on
    this machine, and ends with the run."""
    trainer: Trainer = Trainer()
    engine: Engine = Engine()
    runner: Runner = Runner()
    gateway: GatewayRecipe = GatewayRecipe()
    verl: dict[str, Any] = msgspec.field(default_factory=dict)
    """verl's own configuration by verl's names, checked by the trainer against verl's schema."""

    def __post_init__(self) -> None:
        """Check what types can't say."""
        self._check_agent()
        if self.await_seconds is not None and not self.await_rewards:
            raise ConfigError("await_seconds: it limits await_rewards, which is empty; set both")
        for alias, policy in self.policies.items():
            policy.check(alias)
        _check_finite(self)
        _check_least(self)
        for alias, policy in self.policies.items():
            _check_least(policy, f"policies.{alias}.")
            self._check_constrained(alias, policy)
        self._check_cluster()
        check_engines(self.engine, self.policies, self.trainer, in_cluster=self.cluster == "ray")
        if self.gateway.hold_seconds < _OUTLASTS * self.gateway.drain_seconds:
            raise ConfigError(
                "gateway.hold_seconds: a hold is renewed when its drain is over, and must last until then;"
                f" make it at least {_OUTLASTS} times gateway.drain_seconds, {self.gateway.drain_seconds}"
            )
        compiled(self.gateway.pin, key="gateway.pin")
        algorithm = self.algorithm
        live = self.live
        if live is not None and (live.max_rollouts or live.min_rollouts) < live.min_rollouts:
            raise ConfigError(
                f"live.max_rollouts: {live.max_rollouts} is less than live.min_rollouts,"
                f" {live.min_rollouts}"
            )
        if (
            algorithm is not None
            and algorithm.importance_min is not None
            and algorithm.importance_min >= algorithm.importance_max
        ):
            raise ConfigError(
                f"algorithm.importance_min: {algorithm.importance_min} is not less than"
                f" algorithm.importance_max, {algorithm.importance_max}"
            )
        if (
            algorithm is not None
            and algorithm.tasks_per_iteration
            and algorithm.min_group > algorithm.group_size
        ):
            raise ConfigError(
                f"algorithm.group_size: {algorithm.group_size} is less than algorithm.min_group,"
                f" {algorithm.min_group}, so every group would be skipped"
            )

        if algorithm is not None:
            _check_forks(algorithm)

    def _check_constrained(self, alias: str, policy: PolicyRecipe) -> None:
        if policy.constrained != "free" or not policy.trainable or self.algorithm is None:
            return
        if self.algorithm.failure_reward is None:
            raise ConfigError(
                f"policies.{alias}.constrained: an answer in a wrong form mostly makes the agent fail, and rollouts that"
                " fail are not trained, so the policy would never learn the form; set algorithm.failure_reward,"
                " such as 0.0"
            )

    def _check_agent(self) -> None:
        learns = any(policy.warm_start is not None for policy in self.policies.values())
        if self.agent is None and self.command is None and self.algorithm is None and learns:
            return  # `sft` runs no agent
        if (self.agent is None) == (self.command is None):
            raise ConfigError("recipe: give exactly one of 'agent' and 'command'")

    def _check_cluster(self) -> None:
        ranks, nodes = self.trainer.ranks, self.trainer.nodes
        if self.cluster == "none" and (ranks > 1 or self.cluster_address is not None):
            raise ConfigError(
                "cluster: several 'trainer.ranks', and a 'cluster_address', need 'cluster: ray'"
            )
        if ranks % nodes:
            raise ConfigError(f"trainer.ranks: {ranks} can't be spread evenly over {nodes} nodes")


def _check_forks(algorithm: Algorithm) -> None:
    forks = algorithm.forks
    if forks is None:
        return
    if ":" not in forks.at and forks.at not in FORK_RULES:
        raise ConfigError(
            f"algorithm.forks.at: there is no rule {forks.at!r}.{suggest(forks.at, FORK_RULES)} Or name"
            " 'module:function'."
        )
    if forks.members < algorithm.min_group:
        raise ConfigError(
            f"algorithm.forks.members: {forks.members} is less than algorithm.min_group, {algorithm.min_group}, so"
            " every group of branches would be skipped"
        )


_LEAST = {
    "await_seconds": 0,
    "data.train.limit": 1,
    "data.val.limit": 1,
    "data.test.limit": 1,
    # The probe of an engine's weights scores 8 + 24 tokens, after which vLLM samples one.
    "max_model_len": 33,
    "warm_start.limit": 1,
    "warm_start.epochs": 1,
    "warm_start.batch_size": 1,
    "warm_start.min_lr_ratio": 0,
    "warm_start.warmup": 0,
    "warm_start.weight_decay": 0,
    "warm_start.score_every": 1,
    "algorithm.iterations": 1,
    "algorithm.sampled_tokens": 1,
    "algorithm.tasks_per_iteration": 0,
    "algorithm.group_size": 1,
    "algorithm.min_group": 1,
    "algorithm.further_tasks": 0,
    "algorithm.forks.per_group": 1,
    "algorithm.forks.members": 1,
    "algorithm.max_staleness": 0,
    "algorithm.importance_min": 0,
    "sampling.train.max_tokens": 1,
    "sampling.val.max_tokens": 1,
    "sampling.train.temperature": 0,
    "sampling.val.temperature": 0,
    "live.min_rollouts": 1,
    "live.max_rollouts": 1,
    "critic.learning_rate": 0,
    "critic.weight_decay": 0,
    "critic.epochs": 1,
    "critic.warmup": 0,
    "optimiser.learning_rate": 0,
    "optimiser.min_lr_ratio": 0,
    "optimiser.weight_decay": 0,
    "optimiser.clip_low": 0,
    "optimiser.clip_high": 0,
    "optimiser.kl_coeff": 0,
    "optimiser.warmup": 0,
    "optimiser.ppo_epochs": 1,
    "optimiser.mini_batches": 1,
    "guards.patience": 1,
    "validation.every": 1,
    "trainer.threads": 1,
    "trainer.ranks": 1,
    "trainer.nodes": 1,
    "trainer.keep_checkpoints": 1,
    "trainer.keep_lessons": 0,
    "trainer.probe_tolerance": 0,
    "trainer.max_tokens_per_micro_batch": 1,
    "engine.replicas": 1,
    "engine.slots": 1,
    "engine.tensor_parallel": 1,
    "engine.threads": 1,
    "runner.processes": 1,
    "runner.concurrency": 1,
    "gateway.port": 0,
    "gateway.drain_seconds": 0,
}
"""Smallest sensible values."""

_ABOVE_ZERO = (
    "algorithm.importance_max",
    "critic.clip",
    "critic.grad_clip",
    "optimiser.grad_clip",
    "warm_start.learning_rate",
    "warm_start.grad_clip",
    "runner.timeout_seconds",
    "runner.lease_seconds",
    "gateway.hold_seconds",
)
"""Keys whose values must be more than 0."""


def _check_finite(section: Any, prefix: str = "") -> None:
    """Refuse numbers that are infinite or none, in a section and those below it."""
    for name in section.__struct_fields__:
        value, key = getattr(section, name), f"{prefix}{name}"
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(f"{key}: must be a finite number, not {value}")
        if isinstance(value, msgspec.Struct):
            _check_finite(value, f"{key}.")
    if isinstance(section, Recipe):
        for alias, policy in section.policies.items():
            _check_finite(policy, f"policies.{alias}.")
        for number, reward in enumerate(section.step_rewards):
            _check_finite(reward, f"step_rewards[{number}].")


def _check_least(section: Recipe | PolicyRecipe, prefix: str = "") -> None:
    """Refuse values below `_LEAST`, or not `_ABOVE_ZERO`, of the keys that the section has."""
    for key in _ABOVE_ZERO:
        value = _value(section, key)
        if value is not None and value <= 0:
            raise ConfigError(f"{prefix}{key}: must be more than 0, not {value}")
    for key, least in _LEAST.items():
        value = _value(section, key)
        if value is not None and value < least:
            raise ConfigError(f"{prefix}{key}: must be at least {least}, not {value}")


def _value(section: Any, key: str) -> Any:
    """The value at a dotted key; `None` where there is none of that name, or its section is missing."""
    found: Any = section
    for part in key.split("."):
        found = getattr(found, part, None)
    return found
