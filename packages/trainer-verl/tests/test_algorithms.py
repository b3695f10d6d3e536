"""Our updates against verl's own estimators, losses and aggregation, on the same rows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import msgspec
import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from tiny_rows import Sequence, sequences, write_model

from lightningrl.credit import broadcast
from lightningrl.credit.broadcast import Form
from lightningrl.recipe import Optimiser
from lightningrl.recipe.algorithm import LossName
from lightningrl_testkit.traces import Did, group, trace
from lightningrl_verl.worker.backend import VerlBackend
from lightningrl_verl.worker.backend_config import BackendConfig, compose_verl_config
from lightningrl_verl.worker.batch import prompt_length, to_batch
from lightningrl_verl.worker.workers import policy_worker

if TYPE_CHECKING:
    from tensordict import TensorDict

torch.set_num_threads(1)

# Gradients as they are: no clipping, and steps too small to move a weight of fp32.
STILL = Optimiser(learning_rate=1e-30, schedule="constant", grad_clip=1e9, clip_high=0.28)
# DPPO's bounds are on probabilities, which are small in a model that has learned nothing.
BOUNDS = {"dppo_tv": 1e-3, "dppo_kl": 1e-4}
REWARDS = [1.0, 0.0, 0.5, 0.0, 0.0, 1.0]
GROUPS = np.array(["a", "a", "a", "b", "b", "b"])


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"), tied=False)


def config(model: Path, loss: str = "ppo", **changes: object) -> BackendConfig:
    bounds = {"clip_low": BOUNDS[loss], "clip_high": BOUNDS[loss]} if loss in BOUNDS else {}
    optimiser = msgspec.structs.replace(STILL, **bounds, **changes)
    return BackendConfig(
        model_path=str(model), optimiser=optimiser, loss=loss, max_tokens_per_micro_batch=64
    )


def single_turns() -> list[Sequence]:
    """One answer per rollout, of unequal lengths, without advantages."""
    rows = []
    for row in sequences(6, seed=3):
        mask = np.arange(len(row.token_ids)) >= 4
        rows.append(replace(row, mask=mask, advantages=np.zeros(len(mask), np.float32)))
    return rows


def off_policy(one: VerlBackend, rows: list[Sequence]) -> list[np.ndarray]:
    """Log-probs of an imagined older policy: whole rows, and tokens in them, on both sides of 1."""
    draw = np.random.default_rng(7)
    return [
        np.where(row.mask, now + shift + draw.uniform(-0.2, 0.2, len(now)), 0).astype(np.float32)
        for row, now, shift in zip(
            rows, one.log_probs(rows), [0.5, -0.5, 0.1, -0.1, 0.4, -0.4], strict=True
        )
    ]


Gradients = dict[str, torch.Tensor]


def watched(actor) -> list[Gradients]:
    """A list that grows by the gradients of each optimiser step."""
    engine, seen = actor.actor.engine, []

    def look(*_: object) -> None:
        weights = engine.module.named_parameters()
        seen.append({name: one.grad.to_local().clone() for name, one in weights})

    engine.optimizer.register_step_pre_hook(look)
    return seen


def relative(ours: Gradients, theirs: Gradients) -> float:
    """Norm of the difference of all gradients over the norm of theirs."""
    gap = sum(float((ours[name] - theirs[name]).double().square().sum()) for name in theirs)
    return (gap / sum(float(one.double().square().sum()) for one in theirs.values())) ** 0.5


def credited(rows: list[Sequence], form: Form) -> list[float]:
    """The advantage that core's own `broadcast` gives each of these single-turn rollouts."""
    traces = [
        trace(reward, Did("question", tokens=int(row.mask.sum())), member=i)
        for i, (reward, row) in enumerate(zip(REWARDS, rows, strict=True))
    ]
    groups = [group(*traces[:3], name="a"), group(*traces[3:], name="b")]
    return [credit_T[0] for credit_G in broadcast(groups, normalise=form) for credit_T in credit_G]


def weighted(rows: list[Sequence], advantages: list[float]) -> list[Sequence]:
    """Advantage times 1 / (rollouts * tokens): each rollout weighs the same."""
    return [
        replace(
            row,
            advantages=np.where(row.mask, value / (len(rows) * row.mask.sum()), 0).astype("f4"),
        )
        for row, value in zip(rows, advantages, strict=True)
    ]


class Verl:
    """verl's own path: its estimator, its `ppo_loss`, its aggregation."""

    def __init__(self, model: Path, loss: str, estimator: str) -> None:
        composed = compose_verl_config(config(model, loss)).actor_rollout_ref
        OmegaConf.update(composed, "actor.loss_agg_mode", "seq-mean-token-mean")
        self.actor = policy_worker(composed, "actor", "cpu")
        self.steps = watched(self.actor)
        self.estimator = estimator

    def update(self, rows: list[Sequence], old: list[np.ndarray]) -> Gradients:
        from verl.utils import tensordict_utils

        batch = to_batch(rows, {"old_log_probs": old})
        batch["advantages"] = self.advantages(rows, batch)
        tensordict_utils.assign_non_tensor(
            batch,
            temperature=1.0,
            max_token_len_per_gpu=64,
            calculate_entropy=False,
            mini_batch_size=len(rows),
            global_batch_size=len(rows),
        )
        self.actor.update_actor(batch)
        return self.steps[-1]

    def advantages(self, rows: list[Sequence], batch: TensorDict) -> torch.Tensor:
        from verl.trainer.config import AlgoConfig
        from verl.trainer.ppo.core_algos import get_adv_estimator_fn

        lengths = [len(row.token_ids) - prompt_length(row) for row in rows]
        rewards = torch.zeros(len(rows), max(lengths))
        for i, length in enumerate(lengths):
            rewards[i, length - 1] = REWARDS[i]
        mask = batch["response_mask"].to_padded_tensor(0)[:, : max(lengths)]
        advantages, _ = get_adv_estimator_fn(self.estimator)(
            token_level_rewards=rewards,
            response_mask=mask,
            index=GROUPS,
            config=AlgoConfig(gamma=1.0),
        )
        parts = [advantages[i, :length] for i, length in enumerate(lengths)]
        return torch.nested.as_nested_tensor(parts, layout=torch.jagged)


@pytest.mark.parametrize(
    ("loss", "form", "estimator"),
    [
        ("ppo", "std", "grpo"),
        ("ppo", "leave_one_out", "rloo"),
        ("ppo", "reinforce++", "reinforce_plus_plus"),
        ("gspo", "std", "grpo"),
        ("cispo", "std", "grpo"),
        ("dppo_tv", "std", "grpo"),
        ("dppo_kl", "std", "grpo"),
        ("gpg", "std", "grpo"),
    ],
)
def test_gradients_on_single_turns_are_those_of_verls_own_path(
    model: Path, loss: str, form: Form, estimator: str
):
    ours = VerlBackend(config(model, loss))
    rows = single_turns()
    old = off_policy(ours, rows)
    steps = watched(ours.ranks._rank._actor)
    metrics = ours.update(weighted(rows, credited(rows, form)), old)
    # Some ratios are clipped, so that the losses differ from each other; GPG has no ratios.
    assert loss == "gpg" or 0 < metrics["pg_clipfrac"] < 1
    theirs = Verl(model, loss, estimator).update(rows, old)
    assert relative(steps[-1], theirs) < 1e-5


@pytest.mark.parametrize("loss", get_args(LossName))
def test_every_loss_grows_in_proportion_to_its_advantages(model: Path, loss: LossName):
    # An advantage carries its share of the loss, so what isn't in proportion would depend on the batch's size.
    from verl.trainer.ppo.core_algos import get_policy_loss_fn
    from verl.utils.config import omega_conf_to_dataclass

    composed = compose_verl_config(config(model, loss)).actor_rollout_ref.actor
    actor = omega_conf_to_dataclass(composed)
    actor.global_batch_info.update(dp_size=1, batch_num_tokens=12, global_batch_size=3)
    old = torch.log(torch.tensor([[0.5, 0.25, 0.1, 0.4]] * 3))
    ratios = torch.tensor([[1.2, 1.5, 0.6, 1.1], [0.9, 0.7, 2.0, 0.9], [1.2, 1.0, 1.0, 0.8]])
    advantages = torch.tensor([[4.0], [-4.0], [2.0]]).expand(3, 4)

    def measure(scale: float) -> float:
        of = get_policy_loss_fn(composed.policy_loss.loss_mode)
        args = (old, old + ratios.log(), advantages * scale, torch.ones(3, 4, dtype=torch.bool))
        return of(*args, "token-sum", actor, None)[0].item()

    assert measure(0.001) == pytest.approx(0.001 * measure(1.0), rel=1e-5)


@pytest.fixture(scope="module")
def still(model: Path) -> Iterator[VerlBackend]:
    one = VerlBackend(config(model, mini_batches=2))
    yield one
    one.close()


def uneven() -> list[Sequence]:
    """Rollout x in three rows, rollout y in one; each weighs a half, x in its favour."""
    rows = sequences(4, seed=5)
    of_x = sum(int(row.mask.sum()) for row in rows[:3])
    return [
        replace(
            row,
            rollout_id="x" if i < 3 else "y",
            advantages=np.where(row.mask, 0.5 / of_x if i < 3 else -0.5 / row.mask.sum(), 0).astype(
                "f4"
            ),
        )
        for i, row in enumerate(rows)
    ]


def test_a_rollout_has_its_share_of_a_step_whatever_its_rows_and_mini_batches(
    model: Path, still: VerlBackend
):
    rows = uneven()
    old = still.log_probs(rows)
    whole = VerlBackend(config(model))
    at_once, apart = watched(whole.ranks._rank._actor), watched(still.ranks._rank._actor)
    whole.update(rows, old)
    still.update(rows, old)
    (together,) = at_once
    # A step for each rollout, at the same weights.
    of_x, of_y = apart
    mean = {name: (of_x[name] + of_y[name]) / 2 for name in of_x}
    assert relative(mean, together) < 1e-5


def test_what_is_measured_beside_the_loss(still: VerlBackend):
    rows = uneven()
    now = still.log_probs(rows)
    # All tokens were a quarter of a nat less likely before: the ratio is e^0.25 = 1.2840 everywhere.
    old = [
        np.where(row.mask, one - 0.25, 0).astype("f4") for row, one in zip(rows, now, strict=True)
    ]
    metrics = still.update(rows, old)
    assert metrics["ratio_max"] == pytest.approx(1.2840, abs=1e-4)
    assert metrics["ppo_kl"] == pytest.approx(-0.25, abs=1e-5)
    # e^200 is no number of fp32, and metrics are JSON, which has no infinity.
    far = [one - np.float32(200) for one in now]
    assert still.update(rows, far)["ratio_max"] == pytest.approx(3.4e38, rel=0.01)


def test_importance_weights_multiply_each_tokens_loss(still: VerlBackend):
    rows = uneven()
    now = still.log_probs(rows)
    steps = watched(still.ranks._rank._actor)
    still.update(rows, now, [np.where(row.mask, 1.5, 0).astype("f4") for row in rows])
    louder = [replace(row, advantages=row.advantages * np.float32(1.5)) for row in rows]
    still.update(louder, now)
    # Two mini-batches each.
    assert relative(steps[0], steps[2]) < 1e-6
    assert relative(steps[1], steps[3]) < 1e-6


@pytest.mark.parametrize(
    ("estimator", "expected"),
    [
        # The policy gave every token ln 2 more than the initial weights do: p_ref / p = 1/2.
        ("k1", 0.693147),
        ("k2", 0.240227),
        # 1/2 - ln(1/2) - 1
        ("k3", 0.193147),
        ("k3+", 0.193147),
        ("abs", 0.693147),
    ],
)
def test_estimators_of_the_kl_penalty_are_verls(estimator: str, expected: float):
    from verl.trainer.ppo.core_algos import kl_penalty

    reference = torch.tensor([[-1.5]])
    found = kl_penalty(reference + np.log(2), reference, estimator)
    assert found.item() == pytest.approx(expected, abs=1e-5)
