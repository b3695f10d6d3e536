"""verl's own keys: those that take effect, and those that are refused with the reason."""

import pytest

from lightningrl.errors import ConfigError
from lightningrl.recipe import Optimiser
from lightningrl_verl.worker.backend_config import (
    BackendConfig,
    check_overrides,
    compose_verl_config,
)


def test_the_fields_become_verls_keys():
    composed = compose_verl_config(
        BackendConfig(
            model_path="m",
            optimiser=Optimiser(
                learning_rate=0.5, clip_high=0.28, betas=(0.8, 0.9), kl_estimator="k2"
            ),
            loss="gspo",
        )
    )
    actor = composed.actor_rollout_ref.actor
    assert actor.optim.lr == 0.5
    assert list(actor.optim.betas) == [0.8, 0.9]
    assert actor.clip_ratio_high == 0.28
    assert actor.kl_loss_type == "k2"
    assert actor.policy_loss.loss_mode == "gspo"
    assert actor.loss_agg_mode == "token-sum"
    assert actor.fsdp_config.mixed_precision.param_dtype == "fp32"


def test_an_override_wins_over_the_field():
    overrides = {
        "actor.optim.betas": [0.7, 0.6],
        "actor.clip_ratio_c": 4.0,
        "model.override_config.attn_implementation": "eager",
    }
    composed = compose_verl_config(
        BackendConfig(model_path="m", optimiser=Optimiser(learning_rate=1.0), overrides=overrides)
    )
    role = composed.actor_rollout_ref
    assert list(role.actor.optim.betas) == [0.7, 0.6]
    assert role.actor.clip_ratio_c == 4.0
    assert role.model.override_config.attn_implementation == "eager"


def test_overrides_may_be_nested_and_the_last_one_wins():
    overrides = {
        "actor.optim.lr": 0.1,
        "actor": {"optim": {"lr": 0.25}, "clip_ratio_c": 4.0},
        "actor.clip_ratio_c": 5.0,
        "model": {"lora_rank": 8, "override_config": {"rope_scaling": {"factor": 2.0}}},
    }
    check_overrides(overrides)
    composed = compose_verl_config(
        BackendConfig(model_path="m", optimiser=Optimiser(learning_rate=1.0), overrides=overrides)
    )
    role = composed.actor_rollout_ref
    assert role.actor.optim.lr == 0.25
    assert role.actor.clip_ratio_c == 5.0
    assert role.model.override_config.rope_scaling.factor == 2.0
    # Of adapters the export is ours, as with `model.lora_rank`.
    assert "hf_model" not in role.actor.checkpoint.save_contents
    with pytest.raises(ConfigError, match=r"no key 'actor.optim.lrr'.*'actor.optim.lr'"):
        check_overrides({"actor": {"optim": {"lrr": 0.1}}})


def test_an_unknown_key_names_the_nearest():
    with pytest.raises(ConfigError, match=r"no key 'actor.optim.betass'.*'actor.optim.betas'"):
        check_overrides({"actor.optim.betass": [0.9, 0.9]})


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("trainer.total_epochs", 3, "our loop takes the place of verl's trainer"),
        ("data.train_batch_size", 8, "the recipe's `data`"),
        ("algorithm.adv_estimator", "gae", "the recipe's `algorithm.credit`"),
        ("rollout.gpu_memory_utilization", 0.5, "`engine` and `sampling`"),
        ("actor.loss_agg_mode", "token-mean", "the token sum that weights define"),
        ("actor.optim.lr_scheduler_type", "cosine", "`optimiser.schedule`"),
        ("actor.policy_loss.loss_mode", "cispo", "set `algorithm.loss`"),
        ("actor.entropy_coeff", 0.1, "set `optimiser.entropy_coeff`"),
        ("actor.kl_loss_type", "k1", "set `optimiser.kl_estimator`"),
        ("actor.kl_loss_coef", 0.1, "set `optimiser.kl_coeff`"),
        ("model.lora_adapter_path", "a", "engines take them merged in"),
        ("actor_rollout_ref.actor.optim.lr", 1.0, "leave out the prefix"),
    ],
)
def test_a_key_that_our_loop_does_not_honour_is_refused_with_the_reason(key, value, reason):
    with pytest.raises(ConfigError, match=reason):
        check_overrides({key: value})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("actor.optim.weight_decay", "much"),
        ("actor.calculate_entropy", 1),
        ("actor.optim.optimizer", 3),
        ("actor.optim.clip_grad", True),
    ],
)
def test_a_value_of_the_wrong_type_is_refused(key, value):
    with pytest.raises(ConfigError, match=f"verl key '{key}' takes"):
        check_overrides({key: value})
