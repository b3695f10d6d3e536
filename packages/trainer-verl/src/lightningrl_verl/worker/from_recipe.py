"""What a recipe says about training one policy, as the value that verl is driven by."""

from __future__ import annotations

from pathlib import Path

from lightningrl.errors import ConfigError
from lightningrl.recipe import Recipe
from lightningrl_verl.worker.backend_config import BackendConfig
from lightningrl_verl.worker.rollout_config import rollout_of


def backend_config(recipe: Recipe, alias: str, model: Path) -> BackendConfig:
    """The recipe's part that concerns verl and one policy.

    Raises:
        ConfigError: `optimiser` or `algorithm` is missing.
    """
    optimiser, algorithm = recipe.policies[alias].optimiser or recipe.optimiser, recipe.algorithm
    if optimiser is None or algorithm is None:
        raise ConfigError("recipe: training needs the sections 'optimiser' and 'algorithm'")
    return BackendConfig(
        model_path=str(model.resolve()),
        device=recipe.trainer.device,
        dtype=recipe.trainer.precision,
        train_last=recipe.trainer.train_last,
        temperature=recipe.sampling.train.temperature,
        optimiser=optimiser,
        loss=algorithm.loss,
        total_iterations=algorithm.iterations,
        max_tokens_per_micro_batch=recipe.trainer.max_tokens_per_micro_batch,
        seed=recipe.seed,
        rollout=rollout_of(recipe, alias),
        overrides=recipe.verl,
    )
