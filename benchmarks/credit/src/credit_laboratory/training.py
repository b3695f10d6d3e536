"""Policy gradient on a table of logits, all seeds of a configuration at once.

The policy is a softmax over L[observation, action], 0 at first. An update is rate * K grad with
K = (I + U U^T) / 2, rows of U random unit vectors in R^16: half of each step leaks to other observations, as it
does where weights are shared. The step is shortened so that the mean KL from the old policy over the visited
rows is at most `kl`. Every rollout weighs 1/N in the loss ("rollout mean"). One step per batch, on policy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

import numpy as np

from credit_laboratory.batch import Episodes, decisions_of
from credit_laboratory.branches import Branches, Plan, choose, forks_of, joined, replayed_turns
from credit_laboratory.methods import GAE, METHODS, TableCritic
from credit_laboratory.tasks import CONTEXTS, ENVIRONMENTS, Environment, Flags, Floats, Ints

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
    credit = _Credit(environment, method, len(seeds))
    policies = _Policies(environment, seeds, GROUP if credit.plan is None else credit.plan.group)
    generators = [np.random.default_rng([seed, 1]) for seed in seeds]
    success, tokens = [], [np.zeros(len(seeds), np.int64)]
    while tokens[-1].min() < budget:
        shape = (2, environment.turns, policies.rollouts)
        chance = np.concatenate([one.random(shape) for one in generators], axis=2)
        episodes, succeeded = policies.roll_out(chance)
        success.append(succeeded.reshape(len(seeds), -1).mean(1))
        batch = _Batch(episodes, None, policies.seed_of)
        if credit.plan is not None:
            batch = policies.forked(credit.plan, episodes, chance, generators)
        sampled = batch.sampled.sum(1)
        tokens.append(tokens[-1] + np.bincount(batch.seed_of, sampled, len(seeds)).astype(np.int64))
        policies.learn(batch, credit.of(batch), settings)
    return Curve(np.stack(success), np.stack(tokens[1:]))


@dataclass(frozen=True, eq=False)
class _Batch:
    """What an update learns from."""

    episodes: Episodes
    """Of B rollouts, branches last."""
    branches: Branches | None
    seed_of: Ints
    """[B]."""

    @property
    def sampled(self) -> Flags:
        """[B, T] the turns that cost a token."""
        lived = self.episodes.lived
        if self.branches is None:
            return lived
        return lived & ~replayed_turns(self.branches, lived.shape)

    @property
    def weight(self) -> Floats:
        """[B] what a rollout weighs: 1, or its group's members over all that share their weight."""
        if self.branches is None:
            return np.ones(len(self.seed_of))
        count = len(self.seed_of) - len(self.branches.parent)
        home = self.episodes.group[:count]
        owner = np.concatenate([home, home[self.branches.parent]])
        return np.bincount(home)[owner] / np.bincount(owner)[owner]


class _Credit:
    """One method, applied to the batch: seed by seed where it looks beyond groups, else all at once."""

    def __init__(self, environment: type[Environment], method: str, seeds: int) -> None:
        self._environment = environment
        self._method = next((one for one in METHODS if one.name == method), None)
        if self._method is None and method != GAE:
            raise ValueError(f"no method {method!r}")
        self.plan = None if self._method is None else self._method.plan
        self._critics = [TableCritic(environment.observations) for _ in range(seeds)]

    def of(self, batch: _Batch) -> Floats:
        """[B, T] credit, 0 where no turn took place."""
        episodes = batch.episodes
        credit = np.zeros(episodes.lived.shape)
        if self._method is not None and batch.branches is not None:
            decisions = decisions_of(episodes, self._environment, step_rewards=False)
            forks = forks_of(batch.branches, episodes.lived)
            credit[episodes.lived] = self._method(decisions, forks)
            return credit
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

    def __init__(self, environment: type[Environment], seeds: Sequence[int], group: int) -> None:
        self._environment = environment
        self._seeds = len(seeds)
        observations = environment.observations
        self._logits = np.zeros((len(seeds), observations, environment.actions))
        self._features = np.stack([_features(seed, observations) for seed in seeds])
        self.rollouts = CONTEXTS * group
        """Of a seed in an update."""
        self.seed_of = np.repeat(np.arange(len(seeds)), self.rollouts)
        self._contexts = np.tile(np.repeat(np.arange(CONTEXTS), group), len(seeds))

    def forked(
        self,
        plan: Plan,
        members: Episodes,
        chance: Floats,
        generators: Sequence[np.random.Generator],
    ) -> _Batch:
        """The members with branches of them; what is sampled anew has new chance of its seed's generator."""
        randoms = [Random(int(one.integers(2**62))) for one in generators for _ in range(CONTEXTS)]
        branches = choose(plan, members, randoms)
        parent, seed_of = branches.parent, self.seed_of[branches.parent]
        fresh = [
            one.random((2, chance.shape[1], int((seed_of == seed).sum())))
            for seed, one in enumerate(generators)
        ]
        replays = np.arange(chance.shape[1])[:, None] < branches.turn
        given = np.where(replays, chance[:, :, parent], np.concatenate(fresh, axis=2))
        repeated = np.where(replays.T, members.actions[parent], -1)
        rolled, _ = self.roll_out(given, (parent, branches.point, repeated))
        return _Batch(joined(members, rolled), branches, np.concatenate([self.seed_of, seed_of]))

    def roll_out(
        self, chance: Floats, again: tuple[Ints, Ints, Ints] | None = None
    ) -> tuple[Episodes, np.ndarray]:
        """Episodes of all seeds, and [B] which succeeded.

        Args:
            chance: [2, T, B] uniform in [0, 1): for actions and for the environment.
            again: of branches, [B] whose they are, [B] their groups, and [B, T] the actions that they repeat, -1 where
                they sample.
        """
        seed_of, contexts, repeated = self.seed_of, self._contexts, None
        group = seed_of * CONTEXTS + contexts
        if again is not None:
            parent, group, repeated = again
            seed_of, contexts = seed_of[parent], contexts[parent]
        environment = self._environment(contexts)
        turns, count = chance.shape[1:]
        below = self._probabilities().cumsum(2)
        lived = np.zeros((count, turns), np.bool_)
        observed = np.zeros((count, turns), np.int64)
        actions = np.zeros((count, turns), np.int64)
        rewards = np.zeros((count, turns))
        alive = np.ones(count, np.bool_)
        for turn in range(turns):
            seen = environment.observe(turn)
            above = chance[0, turn][:, None] > below[seed_of, seen]
            chosen = np.minimum(above.sum(1), environment.actions - 1)
            if repeated is not None:
                chosen = np.where(repeated[:, turn] >= 0, repeated[:, turn], chosen)
            reward, ended = environment.act(turn, chosen, chance[1, turn])
            lived[:, turn], observed[:, turn], actions[:, turn] = alive, seen, chosen
            rewards[:, turn] = np.where(alive, reward, 0.0)
            alive = alive & ~ended
            if not alive.any():
                break
        roles = np.array([environment.role(turn) for turn in range(turns)])
        episodes = Episodes(group, lived, observed, actions, rewards, roles)
        return episodes, environment.succeeded()

    def learn(self, batch: _Batch, credit: Floats, settings: Settings) -> None:
        """One update on the batch."""
        episodes = batch.episodes
        member, turn = np.nonzero(batch.sampled)
        share_of = batch.weight / (self.rollouts * batch.sampled.sum(1).clip(1))
        weight = credit[member, turn] * share_of[member]
        place = batch.seed_of[member] * self._environment.observations
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
