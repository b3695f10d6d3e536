"""Every mistake of a recipe that can be found before anything is started, without torch or verl.

A wrong recipe is refused within a second or two, not after a model was built.
"""

from __future__ import annotations

import importlib.util
import json
from dataclasses import dataclass
from pathlib import Path

from lightningrl.credit import CreditAssigner, StatefulAssigner, find_assigner
from lightningrl.errors import ConfigError
from lightningrl.recipe import Data, DataSource, LoadedRecipe, PolicyRecipe, Recipe
from lightningrl.schema import Sampling
from lightningrl.scoring import Scorer
from lightningrl.tasks import load_tasks
from lightningrl.user_input.references import load_object
from lightningrl_verl.start.combinations import check_combinations
from lightningrl_verl.training.batches import Splits, Task
from lightningrl_verl.worker.backend_config import check_overrides


@dataclass(frozen=True)
class Plan:
    """A recipe that can be trained, with what it names."""

    loaded: LoadedRecipe
    trained: tuple[str, ...]
    """Aliases of the policies that are trained, at least one."""
    assigner: CreditAssigner | StatefulAssigner
    scorer: Scorer
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


def check(loaded: LoadedRecipe) -> Plan:
    """Check a recipe and read its tasks.

    Raises:
        ConfigError: a section is missing, something that the recipe names can't be found, or a key
            of verl's is wrong.
    """
    recipe = loaded.recipe
    missing = [key for key in ("algorithm", "optimiser") if getattr(recipe, key) is None]
    if missing:
        raise ConfigError(f"recipe: training needs {', '.join(map(repr, missing))}")
    assert recipe.algorithm is not None
    data = recipe.data or Data()
    trained = trained_aliases(recipe)
    _check_sampling(recipe)
    for alias in recipe.policies:
        _check_model(loaded, alias)
    assigner = find_assigner(
        recipe.algorithm.credit, recipe.algorithm.credit_args, folder=loaded.folder
    )
    values = isinstance(assigner, StatefulAssigner) and assigner.needs_values
    check_combinations(recipe, needs_values=values)
    _check_trackers(recipe)
    check_overrides(recipe.verl)
    if (data.train is not None) != (recipe.algorithm.tasks_per_iteration > 0):
        raise ConfigError(
            "data.train: without tasks per iteration nothing would use it; leave it out"
            if data.train is not None
            else "recipe: training needs 'data.train', or 'live' and 'algorithm.tasks_per_iteration: 0'"
        )
    splits = Splits(
        train=_split(loaded, data.train, "train"),
        val=_split(loaded, data.val, "val"),
        test=_split(loaded, data.test, "test"),
    )
    scorer = Scorer(recipe.step_rewards, run_folder=loaded.run_folder, folder=loaded.folder)
    return Plan(loaded, trained, assigner, scorer, splits)


def check_packages(recipe: Recipe) -> None:
    """See that what the recipe's engines need is installed.

    Raises:
        ConfigError: it is not.
    """
    if recipe.engine.backend == "vllm" and importlib.util.find_spec("vllm") is None:
        raise ConfigError(
            "engine.backend: vLLM is not installed; install lightningrl-verl with the extra 'vllm'"
        )


def trained_aliases(recipe: Recipe) -> tuple[str, ...]:
    """The aliases of the policies that are trained.

    Raises:
        ConfigError: there is none.
    """
    trainable = tuple(alias for alias, policy in recipe.policies.items() if policy.trainable)
    if not trainable:
        raise ConfigError("policies: at least one policy must be trainable")
    return trainable


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
    elif policy.model is not None:
        _check_layers(loaded, alias, model_folder(loaded, policy))


def _check_layers(loaded: LoadedRecipe, alias: str, model: Path) -> None:
    """Whoever builds the model checks it again; here it costs nothing."""
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    last, layers = loaded.recipe.trainer.train_last, config.get("num_hidden_layers")
    if last is not None and isinstance(layers, int) and last > layers:
        raise ConfigError(
            f"trainer.train_layers: 'last {last}' of policy {alias!r}, whose model has {layers} layers;"
            " name at most as many"
        )


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


def _check_trackers(recipe: Recipe) -> None:
    if "mlflow" in recipe.trackers and importlib.util.find_spec("mlflow") is None:
        raise ConfigError(
            "trackers: MLflow is not installed; install lightningrl-verl with the extra 'mlflow'"
        )


def _split(loaded: LoadedRecipe, source: DataSource | None, name: str) -> list[Task]:
    return load_tasks(source, folder=loaded.folder, split=name) if source is not None else []
