"""All policies of a run: those that are trained, and those that are served beside them as they are."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from pathlib import Path

from lightningrl.deployment import serving_of, serving_path, write_serving
from lightningrl.gateway.control import GatewayClient
from lightningrl.recipe import LoadedRecipe, rewrite_rules
from lightningrl.schema import Endpoint, RewriteRules
from lightningrl_verl.engine.template import read_template
from lightningrl_verl.serving.endpoint_key import endpoint_key
from lightningrl_verl.serving.engines import Trained, load_engines
from lightningrl_verl.serving.policy import ServedPolicy, register
from lightningrl_verl.start.folder import RunFolder
from lightningrl_verl.start.launching import Ground, in_the_end
from lightningrl_verl.start.preflight import Plan
from lightningrl_verl.training.checkpoint import State, policy_folder
from lightningrl_verl.training.study import Trainee
from lightningrl_verl.worker.from_recipe import backend_config
from lightningrl_verl.worker.learner import Learner


async def serve_frozen(
    loaded: LoadedRecipe,
    bases: Mapping[str, Path],
    gateway: GatewayClient,
    stack: contextlib.AsyncExitStack,
) -> list[ServedPolicy]:
    """Serve the policies that are not trained, by an engine here or at their URL; return the former.

    Args:
        loaded: the run's.
        bases: alias -> Hugging Face folder, of policies without a URL.
        gateway: where they are registered.
        stack: closes the engines.

    Raises:
        ConfigError: the variable that should hold an endpoint's key is not set.
    """
    served: list[ServedPolicy] = []
    for alias, settings in loaded.recipe.policies.items():
        if settings.trainable:
            continue
        if settings.url is not None:
            endpoint = Endpoint(
                settings.url, endpoint_key(f"policies.{alias}.url_key", settings.url_key)
            )
            rules = rewrite_rules(loaded.recipe, alias)
            await register(gateway, loaded.recipe, alias, (endpoint,), 0, rules)
            continue
        policy = await _served(loaded, alias, None, gateway, bases[alias], 0, stack)
        await policy.open(None)
        served.append(policy)
    return served


async def start_trainees(
    plan: Plan,
    bases: Mapping[str, Path],
    gateway: GatewayClient,
    newest: tuple[Path, State] | None,
    ground: Ground,
    say: Callable[[str], None],
    stack: contextlib.AsyncExitStack,
) -> list[Trainee]:
    """Load the trained policies and their engines, which are not served yet.

    Args:
        plan: the run's.
        bases: alias -> Hugging Face folder of its initial weights.
        gateway: where they will be registered.
        newest: the checkpoint to go on from.
        ground: where they are trained.
        say: tells the user.
        stack: closes the engines.
    """
    recipe = plan.recipe
    assert recipe.algorithm is not None
    trainees: list[Trainee] = []
    for alias in plan.trained:
        checkpoint = policy_folder(newest[0], alias, plan.trained) if newest else None
        learner = Learner(ground.thread, recipe.algorithm, ground.launcher)
        config = backend_config(recipe, alias, bases[alias])
        exact = await learner.start(config, recipe.critic, checkpoint, recipe.trainer.threads)
        if not exact:
            say(
                f"the checkpoint of {alias!r} is of another number of ranks: its weights and learning rate"
                " go on, the optimiser's moments begin anew"
            )
        version = newest[1].versions[alias] if newest else 0
        model = checkpoint / "huggingface" if checkpoint else bases[alias]
        trained = Trained(learner, ground.thread)
        policy = await _served(plan.loaded, alias, trained, gateway, model, version, stack)
        trainees.append(Trainee(alias, learner, policy, version))
    return trainees


async def _served(
    loaded: LoadedRecipe,
    alias: str,
    trained: Trained | None,
    gateway: GatewayClient,
    model: Path,
    version: int,
    stack: contextlib.AsyncExitStack,
) -> ServedPolicy:
    folder = RunFolder(loaded.run_folder)
    engines = await asyncio.to_thread(
        load_engines,
        loaded.recipe,
        alias,
        trained,
        model=model,
        version=version,
        place=folder.engines / alias,
        logs=folder.logs,
    )
    stack.push_async_callback(in_the_end, engines.close)
    rules = await asyncio.to_thread(_rules, loaded, alias, model)
    policy = ServedPolicy(loaded.recipe, alias, gateway, engines, rules)
    stack.callback(policy.abandon)
    return policy


def _rules(loaded: LoadedRecipe, alias: str, model: Path) -> RewriteRules:
    """What the model's chat template needs; kept in the run's folder for whoever serves it later."""
    settings = loaded.recipe.policies[alias]
    template = read_template(model, settings.chat_template_kwargs)
    rules = rewrite_rules(loaded.recipe, alias, template.rules)
    record = serving_of(alias, settings, rules, template.text)
    write_serving(serving_path(loaded.run_folder, alias), record)
    return rules
