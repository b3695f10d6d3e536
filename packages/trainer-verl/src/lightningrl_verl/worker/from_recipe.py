"""What a recipe says about training one policy, as the value that verl is driven by."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from lightningrl.errors import ConfigError
from lightningrl.recipe import Optimiser, Recipe
from lightningrl_verl.worker.backend_config import SUPERVISED, BackendConfig, dotted
from lightningrl_verl.worker.rollout_config import rollout_of

_OF_RL = ("actor.optim.",)
"""verl's keys that say how RL updates are made."""


def backend_config(recipe: Recipe, alias: str, model: Path) -> BackendConfig:
    """The recipe's part that concerns verl and one policy.

    Raises:
        ConfigError: `optimiser` or `algorithm` is missing.
    """
    optimiser, algorithm = recipe.policies[alias].optimiser or recipe.optimiser, recipe.algorithm
    if optimiser is None or algorithm is None:
        raise ConfigError("recipe: training needs the sections 'optimiser' and 'algorithm'")
    return replace(
        _config(recipe, model, optimiser),
        temperature=recipe.sampling.train.temperature,
        loss=algorithm.loss,
        total_iterations=algorithm.iterations,
        rollout=rollout_of(recipe, alias),
    )


def supervised_config(recipe: Recipe, alias: str, model: Path, updates: int) -> BackendConfig:
    """The same of a policy's supervised fine-tuning: on the same ranks, by an optimiser of its own.

    Of the recipe's `verl` keys those below `actor.optim` are about RL updates, and don't count here.
    """
    settings = recipe.policies[alias].warm_start
    assert settings is not None
    optimiser = Optimiser(
        learning_rate=settings.learning_rate,
        schedule=settings.schedule,
        min_lr_ratio=settings.min_lr_ratio,
        warmup=settings.warmup,
        betas=settings.betas,
        weight_decay=settings.weight_decay,
        grad_clip=settings.grad_clip,
    )
    kept = {key: one for key, one in dotted(recipe.verl).items() if not key.startswith(_OF_RL)}
    return replace(
        _config(recipe, model, optimiser),
        loss=SUPERVISED,
        total_iterations=updates,
        seed=recipe.seed if settings.seed is None else settings.seed,
        overrides=kept,
    )


def _config(recipe: Recipe, model: Path, optimiser: Optimiser) -> BackendConfig:
    """What both have in common."""
    return BackendConfig(
        model_path=str(model.resolve()),
        device=recipe.trainer.device,
        dtype=recipe.trainer.precision,
        train_last=recipe.trainer.train_last,
        optimiser=optimiser,
        max_tokens_per_micro_batch=recipe.trainer.max_tokens_per_micro_batch,
        seed=recipe.seed,
        overrides=recipe.verl,
    )
