"""Every mistake of a recipe that can be found before anything is started, without torch or verl.

A wrong recipe is refused within a second or two, not after a model was built.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from msgspec import structs

from lightningrl.cli.stored_run import find_run_folder
from lightningrl.credit import CreditAssigner, StatefulAssigner, find_assigner
from lightningrl.credit.fork_points import find_rule
from lightningrl.errors import ConfigError
from lightningrl.experience.train_when import load_train_when
from lightningrl.recipe import Data, DataSource, LoadedRecipe, Recipe
from lightningrl.schema import Sampling
from lightningrl.scoring import Scorer
from lightningrl.tasks import load_tasks
from lightningrl.user_input.names import suggest
from lightningrl.user_input.references import load_object
from lightningrl_verl.pretrained.prepare import Template
from lightningrl_verl.pretrained.reference import Source, locate
from lightningrl_verl.pretrained.template_text import template_text
from lightningrl_verl.start.combinations import check_combinations
from lightningrl_verl.supervised.demonstrations import Demonstration, read_demonstrations
from lightningrl_verl.training.batches import Splits, Task
from lightningrl_verl.worker.backend_config import check_overrides

Dialogues = Sequence[Demonstration] | Path
"""Demonstrations, or the folder of the run whose rollouts they are, or the file of a store."""


@dataclass(frozen=True)
class Plan:
    """A recipe that can be trained, with what it names."""

    loaded: LoadedRecipe
    trained: tuple[str, ...]
    """Aliases of the policies that are trained, at least one."""
    assigner: CreditAssigner | StatefulAssigner
    scorer: Scorer
    splits: Splits
    dialogues: Mapping[str, Dialogues]
    """Alias -> what its warm start learns from."""

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
    loaded.agents_python()
    for alias in recipe.policies:
        _check_model(loaded, alias)
    load_train_when(recipe.policies, loaded.folder)
    assigner = find_assigner(
        recipe.algorithm.credit, recipe.algorithm.credit_args, folder=loaded.folder
    )
    if recipe.algorithm.forks is not None:
        find_rule(recipe.algorithm.forks.at, folder=loaded.folder)
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
    splits = _splits(loaded, data)
    scorer = Scorer(recipe.step_rewards, run_folder=loaded.run_folder, folder=loaded.folder)
    dialogues = {
        alias: read_dialogues(loaded, alias)
        for alias, policy in recipe.policies.items()
        if policy.warm_start is not None
    }
    return Plan(loaded, trained, assigner, scorer, splits, dialogues)


def read_dialogues(loaded: LoadedRecipe, alias: str) -> Dialogues:
    """What the warm start of a policy learns from; of a run only that it is there.

    Raises:
        ConfigError: it can't be found or read, or a dialogue is malformed.
    """
    settings = loaded.recipe.policies[alias].warm_start
    assert settings is not None
    if settings.run is not None:
        file = Path(settings.run)
        return file if file.is_file() else find_run_folder(settings.run)
    return read_demonstrations(settings, folder=loaded.folder, key=f"policies.{alias}.warm_start")


@dataclass(frozen=True)
class SftPlan:
    """A recipe one of whose policies can be fine-tuned, as a run of its own."""

    loaded: LoadedRecipe
    """With that policy alone, and without what fine-tuning has no use for."""
    alias: str
    dialogues: Dialogues
    scored: frozenset[str]
    """Ids of the tasks of `data.val` and `data.test`, where it learns from a run; else nobody asks."""

    @property
    def recipe(self) -> Recipe:
        """The recipe."""
        return self.loaded.recipe


def check_sft(loaded: LoadedRecipe, alias: str | None) -> SftPlan:
    """Check what `lightningrl sft` uses of a recipe, and read its demonstrations.

    Args:
        loaded: the recipe.
        alias: of the policy. `None`: the only one that has a `warm_start`.

    Raises:
        ConfigError: there is no such policy, or something that it names can't be found or read.
    """
    learning = [one for one, policy in loaded.recipe.policies.items() if policy.warm_start]
    if not learning:
        raise ConfigError(
            "policies: give one a section 'warm_start', which says what it learns from"
        )
    if alias is None and len(learning) > 1:
        raise ConfigError(
            f"policies: several have a 'warm_start'; name one of {learning} by --policy"
        )
    chosen = alias or learning[0]
    if chosen not in learning:
        raise ConfigError(f"--policy: {chosen!r} has no 'warm_start'.{suggest(chosen, learning)}")
    _check_model(loaded, chosen)
    load_train_when({chosen: loaded.recipe.policies[chosen]}, loaded.folder)
    _check_trackers(loaded.recipe)
    check_overrides(loaded.recipe.verl)
    dialogues = read_dialogues(loaded, chosen)
    suffix = "-sft" if len(learning) == 1 else f"-sft-{chosen}"
    scored: frozenset[str] = frozenset()
    if isinstance(dialogues, Path) and loaded.recipe.data is not None:
        scored = _splits(loaded, structs.replace(loaded.recipe.data, train=None)).scored
    return SftPlan(_alone(loaded, chosen, suffix), chosen, dialogues, scored)


def _alone(loaded: LoadedRecipe, alias: str, suffix: str) -> LoadedRecipe:
    """The recipe of a policy's fine-tuning; its run stands beside that of the whole recipe."""
    recipe = loaded.recipe
    alone = Recipe(
        name=recipe.name + suffix,
        folder=None if recipe.folder is None else recipe.folder + suffix,
        seed=recipe.seed,
        policies={alias: structs.replace(recipe.policies[alias], optimiser=None)},
        trackers=recipe.trackers,
        cluster=recipe.cluster,
        cluster_address=recipe.cluster_address,
        trainer=recipe.trainer,
        verl=recipe.verl,
    )
    return structs.replace(loaded, recipe=alone)


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


def find_model(loaded: LoadedRecipe, alias: str) -> tuple[Source, Template | None]:
    """What a policy's `model` and `chat_template` name.

    Raises:
        ConfigError: one of them isn't there.
    """
    policy = loaded.recipe.policies[alias]
    assert policy.model is not None
    try:
        source = locate(policy.model, folder=loaded.folder, policy=alias)
        name = policy.chat_template
        template = None if name is None else Template(name, template_text(name, loaded.folder))
    except ConfigError as error:
        raise ConfigError(f"policies.{alias}: {error}") from error
    return source, template


def model_alias(recipe: Recipe, policy: str | None) -> str:
    """The policy that is asked for among those given by a `model`.

    Raises:
        ConfigError: there is none of that name, or several.
    """
    given = [alias for alias, one in recipe.policies.items() if one.model is not None]
    if policy is not None and policy not in given:
        raise ConfigError(f"policies: {policy!r} has no 'model'; those that do: {given}")
    if policy is None and len(given) != 1:
        raise ConfigError(f"policies: name one by --policy; those with a 'model': {given}")
    return policy or given[0]


def _check_model(loaded: LoadedRecipe, alias: str) -> None:
    policy = loaded.recipe.policies[alias]
    if policy.tiny is not None:
        load_object(policy.tiny, what=f"policies.{alias}.tiny", folder=loaded.folder)
    elif policy.model is not None:
        source, _ = find_model(loaded, alias)
        # Of a GGUF file the layers are known when it is converted.
        if not source.is_gguf:
            _check_layers(loaded, alias, source.path)


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


def _splits(loaded: LoadedRecipe, data: Data) -> Splits:
    return Splits(
        train=_split(loaded, data.train, "train"),
        val=_split(loaded, data.val, "val"),
        test=_split(loaded, data.test, "test"),
    )


def _split(loaded: LoadedRecipe, source: DataSource | None, name: str) -> list[Task]:
    return load_tasks(source, folder=loaded.folder, split=name) if source is not None else []
