"""A recipe as a whole, with what types can't say about it."""

from __future__ import annotations

import math
from typing import Any, Literal

import msgspec

from lightningrl.errors import ConfigError
from lightningrl.recipe.algorithm import Algorithm, Critic, Guards, Optimiser, StepReward
from lightningrl.recipe.data import Data, Live
from lightningrl.recipe.policy import PolicyRecipe, SamplingRecipe, Validation
from lightningrl.recipe.processes import Engine, GatewayRecipe, Runner, Trainer
from lightningrl.recipe.section import Section
from lightningrl.recipe.serving import check_engines
from lightningrl.schema import RewardsFrom

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
    """`module:attribute`: a callable, an agent object, or a factory of one."""
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
        if (self.agent is None) == (self.command is None):
            raise ConfigError("recipe: give exactly one of 'agent' and 'command'")
        if self.await_seconds is not None and not self.await_rewards:
            raise ConfigError("await_seconds: it limits await_rewards, which is empty; set both")
        for alias, policy in self.policies.items():
            policy.check(alias)
        _check_least(self)
        for alias, policy in self.policies.items():
            _check_least(policy, f"policies.{alias}.")
        self._check_cluster()
        check_engines(self)
        if self.gateway.hold_seconds < _OUTLASTS * self.gateway.drain_seconds:
            raise ConfigError(
                "gateway.hold_seconds: a hold is renewed when its drain is over, and must last until then;"
                f" make it at least {_OUTLASTS} times gateway.drain_seconds, {self.gateway.drain_seconds}"
            )
        algorithm = self.algorithm
        if algorithm is not None and not math.isfinite(algorithm.failure_reward or 0.0):
            raise ConfigError("algorithm.failure_reward: must be a finite number")
        live = self.live
        if live is not None and (live.max_rollouts or live.min_rollouts) < live.min_rollouts:
            raise ConfigError(
                f"live.max_rollouts: {live.max_rollouts} is less than live.min_rollouts,"
                f" {live.min_rollouts}"
            )
        if (
            algorithm is not None
            and algorithm.tasks_per_iteration
            and algorithm.min_group > algorithm.group_size
        ):
            raise ConfigError(
                f"algorithm.min_group: {algorithm.min_group} is more than the"
                f" {algorithm.group_size} rollouts of a group, so every group would be skipped"
            )

    def _check_cluster(self) -> None:
        ranks, nodes = self.trainer.ranks, self.trainer.nodes
        if self.cluster == "none" and (ranks > 1 or self.cluster_address is not None):
            raise ConfigError(
                "cluster: several 'trainer.ranks', and a 'cluster_address', need 'cluster: ray'"
            )
        if ranks % nodes:
            raise ConfigError(f"trainer.ranks: {ranks} can't be spread evenly over {nodes} nodes")


_LEAST = {
    "await_seconds": 0,
    "algorithm.iterations": 1,
    "algorithm.tasks_per_iteration": 0,
    "algorithm.group_size": 1,
    "algorithm.min_group": 1,
    "algorithm.further_tasks": 0,
    "algorithm.max_staleness": 0,
    "live.min_rollouts": 1,
    "live.max_rollouts": 1,
    "critic.epochs": 1,
    "critic.warmup": 0,
    "optimiser.warmup": 0,
    "optimiser.ppo_epochs": 1,
    "optimiser.mini_batches": 1,
    "guards.patience": 1,
    "validation.every": 1,
    "trainer.threads": 1,
    "trainer.ranks": 1,
    "trainer.nodes": 1,
    "trainer.keep_checkpoints": 1,
    "trainer.max_tokens_per_micro_batch": 1,
    "engine.replicas": 1,
    "engine.slots": 1,
    "engine.tensor_parallel": 1,
    "engine.threads": 1,
    "runner.processes": 1,
    "runner.concurrency": 1,
    "gateway.port": 0,
}
"""Smallest sensible values."""


def _check_least(section: Recipe | PolicyRecipe, prefix: str = "") -> None:
    """Refuse values below `_LEAST`, of the keys that the section has."""
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
