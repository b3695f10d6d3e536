"""The keys of what an iteration collects, of credit and of the update, and the guards against collapse."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from lightningrl.recipe.section import Section
from lightningrl.user_input.arguments import Share

LossName = Literal["ppo", "gspo", "cispo", "dppo_tv", "dppo_kl", "gpg"]
"""Of verl's losses those that are in proportion to the advantage, into which a rollout's weight is multiplied."""


FORK_RULES = ("spread", "first", "random", "entropy")
"""Shipped values of `algorithm.forks.at`."""


class Forks(Section, frozen=True):
    """Forks of an iteration's rollouts: further samples from states that those were in."""

    per_group: int = 2
    """Steps of each group's rollouts that are forked."""
    members: int = 4
    """Branches at each of these steps."""
    at: str = "spread"
    """Which steps: `spread`, in each of `per_group` equal parts of a rollout one by chance; `first`, the earliest;
    `random`; `entropy`, the least certain answers; or `module:function`. Never a rollout's first model call: the group
    itself has its samples."""


class Algorithm(Section, frozen=True):
    """What an iteration collects and how credit is assigned."""

    iterations: int
    tasks_per_iteration: int
    """Tasks that one iteration collects. 0: it trains on live rollouts alone."""
    group_size: int
    """Rollouts per task."""
    preset: str | None = None
    """A published algorithm: fills the keys below, and some of `optimiser`, where the recipe has none."""
    sampled_tokens: int | None = None
    """End with the iteration that brings the tokens that were sampled for training to this number, if that is before
    the last one. Null: iterations alone count."""
    min_group: int = 2
    """Groups with fewer usable rollouts are skipped: succeeded ones, and those that `failure_reward` says."""
    failure_reward: float | None = None
    """Reward of a rollout whose agent failed: it raised, broke its contract, or ran out of time. Null: failed
    rollouts are left out. What failed of infrastructure is always left out."""
    credit: str = "broadcast"
    """A shipped method's name, an entry point of `lightningrl.credit`, or `module:function`."""
    credit_args: dict[str, Any] = msgspec.field(default_factory=dict)
    forks: Forks | None = None
    """For credit by forks, such as `vine`. Null: no rollout is forked."""
    loss: LossName = "ppo"
    """verl's policy loss; `ppo` is its `vanilla`."""
    rows: Literal["merged", "calls"] = "merged"
    """What one training sequence is: calls that continue each other, or each call by itself."""
    loss_share: Literal["tokens", "calls"] = "tokens"
    """What shares a rollout's weight in the loss evenly, which is 1/N of all: its trained tokens, or its calls,
    so that a long answer counts no more than a short one."""
    further_tasks: int = 0
    """Dynamic sampling: how many more tasks an iteration may collect, one in place of each group whose
    rewards are all equal; such groups are skipped. 0: none is replaced."""
    importance: Literal["none", "token", "sequence"] | None = None
    """Correct for a gap between the engine and the trained weights by truncated importance weights, per
    token or per row. `none`: the loss compares with the engine's log-probs directly. `None`: `none` in fp32;
    in bf16 `token`, with `loss: gspo` `sequence`."""
    importance_max: float = 2.0
    """Larger weights are cut to this."""
    importance_min: float | None = None
    """Weights outside [importance_min, importance_max] count 0 instead of being cut. `None`: off."""
    max_staleness: int = 0
    """Calls that were sampled more policy versions ago than this are not trained."""


class StepReward(Section, frozen=True):
    """A reward that is computed from recorded steps, without a touch on the agent."""

    rule: str
    """A shipped rule's name, `judge`, or `module:function`."""
    weight: float = 1.0
    """Multiplies the rule's values; negative for what is bad."""
    args: dict[str, Any] = msgspec.field(default_factory=dict)
    """Keyword arguments of the rule."""


class Optimiser(Section, frozen=True):
    """How verl changes the weights."""

    learning_rate: float
    schedule: Literal["constant", "linear", "cosine"] = "linear"
    min_lr_ratio: float = 0.1
    """The schedule ends at `learning_rate` times this."""
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0
    grad_clip: float = 1.0
    """Largest gradient norm."""
    clip_low: float = 0.2
    clip_high: float = 0.28
    """PPO's clip range is [1 - clip_low, 1 + clip_high] (DAPO's clip-higher, arXiv 2503.14476)."""
    entropy_coeff: float = 0.0
    """Bonus on the mean entropy of trained tokens; 0 does not compute it."""
    kl_coeff: float = 0.0
    """Penalty on the divergence from the initial weights; 0 keeps no copy of them."""
    kl_estimator: Literal["k1", "k2", "k3", "abs", "k1+", "k3+"] = "k3"
    """How a token's divergence is estimated, by verl's names; `+` takes the gradient of k2, the unbiased
    one."""
    warmup: int = 0
    """First updates, over which the learning rate rises."""
    ppo_epochs: int = 1
    """How often an update goes over its rows."""
    mini_batches: int = 1
    """Optimiser steps per epoch, at most; the rows of one rollout stay in one of them."""


class Critic(Section, frozen=True):
    """verl's critic, one per trained policy; it begins as the policy's initial weights with a new head."""

    learning_rate: float = 1e-5
    """AdamW's rate, constant."""
    weight_decay: float = 0.0
    """Of AdamW."""
    grad_clip: float = 1.0
    """Largest gradient norm."""
    clip: float = 0.5
    """How far a value may move, in one iteration, before its loss is clipped."""
    epochs: int = 1
    """Optimiser steps per iteration, each over all rows."""
    warmup: int = 0
    """First iterations, in which the critic alone is trained."""


class Guards(Section, frozen=True):
    """Signs of collapse: a run stops after `patience` iterations in a row beyond a limit. Null: off.

    An iteration most of whose groups are solved (`train/solved_groups` above 0.5) counts neither as flat nor
    as one of low entropy or equal rewards: a policy that has learned its task looks like that.
    """

    patience: int = 3
    min_entropy: float | None = 0.001
    """Of `train/entropy`, nats: below it nothing is tried any more."""
    min_reward_std: float | None = None
    """Of `train/reward_std`."""
    max_flat_groups: float | None = 0.99
    """Of `train/flat_groups`: above it no group has anything to compare."""
    min_tool_calls: float | None = 0.1
    """Of `train/tool_calls_per_rollout`, as a share of the first iteration's."""
    min_answer_length: float | None = 0.1
    """Of `train/tokens_per_call`, as a share of the first iteration's."""
    max_answer_length: float | None = 10.0
    """Of `train/tokens_per_call`, as a multiple of the first iteration's."""
    max_ppo_kl: float | None = 0.5
    """Of the size of `actor/ppo_kl`, nats per token: how far one update moves."""
    max_kl: float | None = 5.0
    """Of `actor/kl`, nats per token: how far the policy is from its initial weights."""
    max_ratio: float | None = 1000.0
    """Of `actor/ratio_max`."""
    max_log_prob_gap: float | None = 0.1
    """Of `actor/log_prob_gap`, nats per token: how far engine and trainer are apart."""
    min_merged_share: float | None = None
    """Of `drift/merged_share`."""
    min_trainable_share: Share = 0.5
    """Of `train/trainable_share`: `train` warns below it, `try` fails. An iteration without a token to train ends
    the run whatever stands here."""
