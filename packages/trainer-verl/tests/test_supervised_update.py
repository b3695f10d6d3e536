"""A supervised step through verl's worker, against plain forward passes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_rows import sequences, write_model
from transformers import AutoModelForCausalLM

from lightningrl.recipe import Optimiser, Recipe, parse_recipe
from lightningrl_verl.worker.backend import VerlBackend
from lightningrl_verl.worker.backend_config import SUPERVISED, BackendConfig
from lightningrl_verl.worker.from_recipe import supervised_config

# More threads than free cores spin, and make these tests ten times slower.
torch.set_num_threads(1)

OPTIMISER = Optimiser(learning_rate=1e-2, schedule="linear", min_lr_ratio=0.0)
CONFIG = BackendConfig(
    model_path="",
    optimiser=OPTIMISER,
    loss=SUPERVISED,
    total_iterations=4,
    max_tokens_per_micro_batch=64,
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"), tied=True)


def _plain_loss(model: Path, rows: list) -> tuple[float, float]:
    """Mean cross-entropy of the masked tokens over all rows, and the norm of its gradient."""
    plain = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    losses = []
    for row in rows:
        ids = torch.tensor(row.token_ids[None].astype(np.int64))
        found = torch.log_softmax(plain(ids).logits[0, :-1], -1).gather(-1, ids[0, 1:, None])[:, 0]
        losses.append(-found[torch.tensor(row.mask[1:])])
    loss = torch.cat(losses).mean()
    loss.backward()
    norms = [one.grad.norm() for one in plain.parameters() if one.grad is not None]
    return float(loss.detach()), float(torch.stack(norms).norm())


def test_the_loss_is_the_mean_surprise_of_the_answers_whatever_row_they_stand_in(
    model: Path,
) -> None:
    backend = VerlBackend(replace(CONFIG, model_path=str(model)))
    rows = sequences(7)  # in several passes of at most 64 tokens
    measured = backend.imitate(rows)
    loss, norm = _plain_loss(model, rows)
    assert measured["loss"] == pytest.approx(loss, abs=1e-4)
    assert measured["grad_norm"] == pytest.approx(norm, rel=1e-3)
    assert measured["lr"] == pytest.approx(1e-2)
    # The rows' advantages count for nothing.
    backend.close()


def test_imitating_lowers_the_loss_and_a_resumed_course_goes_on_as_if_uninterrupted(
    model: Path, tmp_path: Path
) -> None:
    config = replace(CONFIG, model_path=str(model))
    rows = sequences(6)
    whole = VerlBackend(config)
    losses = [whole.imitate(rows)["loss"] for _ in range(2)]
    whole.save(tmp_path / "checkpoint")
    rest = [whole.imitate(rows) for _ in range(2)]
    assert losses[0] > losses[1] > rest[0]["loss"] > rest[1]["loss"]
    # From 1e-2 to 0 in 4 steps.
    assert [one["lr"] for one in rest] == pytest.approx([5e-3, 2.5e-3])
    resumed = VerlBackend(config)
    assert resumed.load(tmp_path / "checkpoint")
    assert [resumed.imitate(rows) for _ in range(2)] == rest


def _recipe(**changes: object) -> Recipe:
    warm_start = {
        "demonstrations": "d.jsonl", "learning_rate": 1e-4, "warmup": 2, "betas": [0.9, 0.98],
        "seed": 5,
    }  # fmt: skip
    policy = {"model": "m", "warm_start": warm_start}
    return parse_recipe({"name": "demo", "policies": {"policy": policy}, **changes})


def test_a_warm_start_is_trained_as_the_recipe_says_by_an_optimiser_of_its_own() -> None:
    verl = {"actor.optim.lr": 0.5, "model.lora_rank": 4}
    config = supervised_config(_recipe(verl=verl), "policy", Path("base"), 12)
    assert (config.loss, config.total_iterations, config.seed) == (SUPERVISED, 12, 5)
    assert config.optimiser.learning_rate == 1e-4
    assert config.optimiser.betas == (0.9, 0.98)
    assert config.optimiser.kl_coeff == 0
    # What is said of RL's optimiser is none of its business; adapters are.
    assert config.overrides == {"model.lora_rank": 4}
