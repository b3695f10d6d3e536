"""Every mistake of a recipe that can be found before anything is started, without torch or verl.

A wrong recipe is refused within a second or two, not after a model was built.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lightningrl.credit import CreditAssigner, find_assigner
from lightningrl.errors import ConfigError
from lightningrl.objects import load_object
from lightningrl.recipe import DataSource, LoadedRecipe, PolicyRecipe, Recipe
from lightningrl.schema import Sampling
from lightningrl.tasks import load_tasks
from lightningrl_verl.backend_config import check_overrides
from lightningrl_verl.training.batches import Splits, Task


@dataclass(frozen=True)
class Plan:
    """A recipe that can be trained, with what it names."""

    loaded: LoadedRecipe
    alias: str
    """Of the policy that is trained."""
    assigner: CreditAssigner
    splits: Splits

    @property
    def recipe(self) -> Recipe:
        """The recipe."""
        return self.loaded.recipe

    @property
    def iterations(self) -> int:
        """The run's last iteration."""
        assert self.recipe.algorithm is not None
        return self.recipe.algorithm.iterations

    @property
    def policy(self) -> PolicyRecipe:
        """The policy that is trained."""
        return self.recipe.policies[self.alias]


def check(loaded: LoadedRecipe) -> Plan:
    """Check a recipe and read its tasks.

    Raises:
        ConfigError: a section is missing, something that the recipe names can't be found, or a key
            of verl's is wrong.
    """
    recipe = loaded.recipe
    missing = [key for key in ("algorithm", "optimiser", "data") if getattr(recipe, key) is None]
    if missing:
        raise ConfigError(f"recipe: training needs {', '.join(map(repr, missing))}")
    assert recipe.algorithm is not None
    assert recipe.data is not None
    alias = trained_alias(recipe)
    _check_sampling(recipe)
    _check_model(loaded, alias)
    assigner = find_assigner(
        recipe.algorithm.credit, recipe.algorithm.credit_args, folder=loaded.folder
    )
    check_overrides(recipe.verl)
    data = recipe.data
    splits = Splits(
        train=_split(loaded, data.train, "train"),
        val=_split(loaded, data.val, "val"),
        test=_split(loaded, data.test, "test"),
    )
    return Plan(loaded, alias, assigner, splits)


def trained_alias(recipe: Recipe) -> str:
    """The alias of the policy that is trained.

    Raises:
        ConfigError: there is none, or more than one; or another one, which nothing would serve.
    """
    trainable = [alias for alias, policy in recipe.policies.items() if policy.trainable]
    if len(trainable) != 1:
        raise ConfigError(
            f"policies: exactly one policy must be trainable, not {trainable or 'none'}"
        )
    frozen = [alias for alias in recipe.policies if alias not in trainable]
    if frozen:
        raise ConfigError(
            f"policies: the trainer serves the trained policy alone, and would not serve {frozen};"
            " let the agent call that model at its own URL, which is left untouched"
        )
    return trainable[0]


def model_folder(loaded: LoadedRecipe, policy: PolicyRecipe) -> Path:
    """The Hugging Face folder that a policy's `model` names.

    Raises:
        ConfigError: it isn't there, or holds no model.
    """
    assert policy.model is not None
    path = (loaded.folder / policy.model).resolve()
    if not (path / "config.json").is_file():
        raise ConfigError(
            f"policies: {policy.model!r} is no Hugging Face model folder: {str(path)!r} has no"
            " config.json"
        )
    return path


def _check_model(loaded: LoadedRecipe, alias: str) -> None:
    policy = loaded.recipe.policies[alias]
    if policy.tiny is not None:
        load_object(policy.tiny, what=f"policies.{alias}.tiny", folder=loaded.folder)
    else:
        model_folder(loaded, policy)


def _check_sampling(recipe: Recipe) -> None:
    """Training needs the log-probs of the whole distribution, which verl computes by temperature."""
    sampling = recipe.sampling.train
    whole = Sampling(
        temperature=sampling.temperature, seed=sampling.seed, max_tokens=sampling.max_tokens
    )
    if sampling != whole:
        raise ConfigError(
            "sampling.train: top_p, top_k and penalties change the log-probs in a way that the"
            " update does not know; training takes 'temperature', 'seed' and 'max_tokens' alone"
        )
    if sampling.temperature <= 0:
        raise ConfigError(
            "sampling.train.temperature: must be above 0; greedy rollouts are all equal"
        )
    if sampling.seed is not None:
        raise ConfigError(
            "sampling.train.seed: with one seed all rollouts of a task would be equal"
        )


def _split(loaded: LoadedRecipe, source: DataSource | None, name: str) -> list[Task]:
    return load_tasks(source, folder=loaded.folder, split=name) if source is not None else []
