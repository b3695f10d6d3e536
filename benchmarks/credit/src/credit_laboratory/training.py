"""Policy gradient on a table of logits, all seeds of a configuration at once.

The policy is a softmax over L[observation, action], 0 at first. An update is rate * K grad with
K = (I + U U^T) / 2, rows of U random unit vectors in R^16: half of each step leaks to other observations, as it
does where weights are shared. The step is shortened so that the mean KL from the old policy over the visited
rows is at most `kl`. Every rollout weighs 1/N in the loss ("rollout mean"). One step per batch, on policy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from credit_laboratory.batch import Episodes, decisions_of
from credit_laboratory.methods import GAE, METHODS, TableCritic
from credit_laboratory.tasks import CONTEXTS, ENVIRONMENTS, Environment, Floats, Ints

GROUP = 8
"""Rollouts of each context in an update."""
ROLLOUTS = CONTEXTS * GROUP
"""Rollouts of an update."""
_FEATURES = 16
_LEAK = 0.5


@dataclass(frozen=True)
class Settings:
    """How far an update may go."""

    kl: float
    """Largest mean KL of an update, nats."""
    rate: float
    """Step length before it is shortened."""


@dataclass(frozen=True, eq=False)
class Curve:
    """What training gave, of S seeds."""

    success: Floats
    """[updates, S] share of the rollouts that succeeded, sampled before each update."""
    tokens: Ints
    """[updates, S] tokens sampled so far, those of the update's own rollouts included. A decision is one token."""


def train(task: str, method: str, settings: Settings, seeds: Sequence[int], budget: int) -> Curve:
    """Train one policy per seed until each has sampled `budget` tokens.

    A seed whose rollouts are shorter gets more updates for them. Those that are done go on until all are: what counts
    of a seed are its updates within the budget.
    """
    environment = ENVIRONMENTS[task]
    policies = _Policies(environment, seeds)
    credit = _Credit(environment, method, len(seeds))
    generators = [np.random.default_rng([seed, 1]) for seed in seeds]
    success, tokens = [], [np.zeros(len(seeds), np.int64)]
    while tokens[-1].min() < budget:
        shape = (2, environment.turns, ROLLOUTS)
        chance = np.concatenate([one.random(shape) for one in generators], axis=2)
        episodes, succeeded = policies.roll_out(chance)
        success.append(succeeded.reshape(len(seeds), ROLLOUTS).mean(1))
        tokens.append(tokens[-1] + episodes.lived.reshape(len(seeds), -1).sum(1))
        policies.learn(episodes, credit.of(episodes), settings)
    return Curve(np.stack(success), np.stack(tokens[1:]))


class _Credit:
    """One method, applied to the batch: seed by seed where it looks beyond groups, else all at once."""

    def __init__(self, environment: type[Environment], method: str, seeds: int) -> None:
        self._environment = environment
        self._method = next((one for one in METHODS if one.name == method), None)
        if self._method is None and method != GAE:
            raise ValueError(f"no method {method!r}")
        self._critics = [TableCritic(environment.observations) for _ in range(seeds)]

    def of(self, episodes: Episodes) -> Floats:
        """[B, T] credit, 0 where no turn took place."""
        credit = np.zeros(episodes.lived.shape)
        if self._method is not None and not self._method.over_the_batch:
            credit[episodes.lived] = self._values(episodes, self._critics[0])
            return credit
        for seed, critic in enumerate(self._critics):
            rows = slice(seed * ROLLOUTS, (seed + 1) * ROLLOUTS)
            own = Episodes(
                episodes.group[rows] - seed * CONTEXTS,
                episodes.lived[rows],
                episodes.observed[rows],
                episodes.actions[rows],
                episodes.rewards[rows],
                episodes.roles,
            )
            credit[rows][own.lived] = self._values(own, critic)
        return credit

    def _values(self, episodes: Episodes, critic: TableCritic) -> Floats:
        method = self._method
        decisions = decisions_of(
            episodes,
            self._environment,
            step_rewards=self._environment.rewards_steps,
            levels=method.levels if method is not None else 1,
        )
        if method is None:
            return critic.advantages(decisions, episodes.observed[episodes.lived])
        return method(decisions)


class _Policies:
    """S policies of one task."""

    def __init__(self, environment: type[Environment], seeds: Sequence[int]) -> None:
        self._environment = environment
        self._seeds = len(seeds)
        observations = environment.observations
        self._logits = np.zeros((len(seeds), observations, environment.actions))
        self._features = np.stack([_features(seed, observations) for seed in seeds])
        self._seed_of = np.repeat(np.arange(len(seeds)), ROLLOUTS)
        self._contexts = np.tile(np.repeat(np.arange(CONTEXTS), GROUP), len(seeds))

    def roll_out(self, chance: Floats) -> tuple[Episodes, np.ndarray]:
        """Episodes of all seeds, and [B] which succeeded.

        Args:
            chance: [2, T, B] uniform in [0, 1): for actions and for the environment.
        """
        environment = self._environment(self._contexts)
        turns, count = chance.shape[1:]
        below = self._probabilities().cumsum(2)
        lived = np.zeros((count, turns), np.bool_)
        observed = np.zeros((count, turns), np.int64)
        actions = np.zeros((count, turns), np.int64)
        rewards = np.zeros((count, turns))
        alive = np.ones(count, np.bool_)
        for turn in range(turns):
            seen = environment.observe(turn)
            above = chance[0, turn][:, None] > below[self._seed_of, seen]
            chosen = np.minimum(above.sum(1), environment.actions - 1)
            reward, ended = environment.act(turn, chosen, chance[1, turn])
            lived[:, turn], observed[:, turn], actions[:, turn] = alive, seen, chosen
            rewards[:, turn] = np.where(alive, reward, 0.0)
            alive = alive & ~ended
            if not alive.any():
                break
        group = self._seed_of * CONTEXTS + self._contexts
        roles = np.array([environment.role(turn) for turn in range(turns)])
        episodes = Episodes(group, lived, observed, actions, rewards, roles)
        return episodes, environment.succeeded()

    def learn(self, episodes: Episodes, credit: Floats, settings: Settings) -> None:
        """One update on the batch."""
        member, turn = np.nonzero(episodes.lived)
        length = episodes.lived.sum(1)
        weight = credit[member, turn] / (ROLLOUTS * length[member])
        place = self._seed_of[member] * self._environment.observations
        place = place + episodes.observed[member, turn]
        old = self._probabilities()
        shape = self._logits.shape
        cells = place * shape[2] + episodes.actions[member, turn]
        gradient = np.bincount(cells, weight, minlength=self._logits.size).reshape(shape)
        total = np.bincount(place, weight, minlength=shape[0] * shape[1]).reshape(*shape[:2], 1)
        step = settings.rate * self._leaked(gradient - total * old)
        visits = np.bincount(place, minlength=shape[0] * shape[1]).reshape(shape[:2])
        share = visits / np.maximum(visits.sum(1, keepdims=True), 1)
        self._logits += _shortened(self._logits, step, old, share, settings.kl)

    def _leaked(self, gradient: Floats) -> Floats:
        """K times the gradient, without the matrix K."""
        shared = self._features.transpose(0, 2, 1) @ gradient
        return (1 - _LEAK) * gradient + _LEAK * (self._features @ shared)

    def _probabilities(self) -> Floats:
        raised = np.exp(self._logits - self._logits.max(2, keepdims=True))
        return raised / raised.sum(2, keepdims=True)


def _features(seed: int, observations: int) -> Floats:
    features = np.random.default_rng([seed, 0]).standard_normal((observations, _FEATURES))
    return features / np.linalg.norm(features, axis=1, keepdims=True)


def _shortened(logits: Floats, step: Floats, old: Floats, share: Floats, kl: float) -> Floats:
    """`step`, made shorter per seed until the mean KL over visited rows is about `kl` at most."""
    before = np.log(old)
    for _ in range(3):
        moved = logits + step
        moved = moved - moved.max(2, keepdims=True)
        after = moved - np.log(np.exp(moved).sum(2, keepdims=True))
        divergence = ((old * (before - after)).sum(2) * share).sum(1)
        factor = np.sqrt(kl / np.maximum(divergence, 1e-12))
        step = step * np.where(divergence > kl, factor, 1.0)[:, None, None]
    return step
