"""From what a recipe names to functions that can be awaited.

Invariant: how an agent is run is decided here, once, before any rollout is leased; an object that can't
be run is a `ConfigError` that says what would do.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

from lightningrl.capture.adapter import Adapter, AgentCall, describe
from lightningrl.capture.adapters import adapted_modules
from lightningrl.errors import ConfigError
from lightningrl.recipe import LoadedRecipe
from lightningrl.runner.swallowed import heard
from lightningrl.runner.threads import run_in_thread
from lightningrl.user_input.references import load_object


@dataclass(frozen=True)
class ResolvedAgent:
    """How to run the agent that a recipe names."""

    call: AgentCall | None
    """Runs it on its input. `None`: the agent is `command`."""
    command: tuple[str, ...] | None
    make_input: AgentCall | None
    """Task -> the agent's input. `None`: the task itself."""
    score: Callable[..., Awaitable[Any]] | None
    """`(task, output, trace)` -> reward. `None`: the agent rewards itself."""


def resolve_agent(loaded: LoadedRecipe, adapters: Sequence[Adapter]) -> ResolvedAgent:
    """Import what the recipe names.

    Args:
        loaded: the recipe.
        adapters: those that are installed, to which imports of the agent, and of a factory later, add.

    Raises:
        ConfigError: something is missing, or is nothing that can be run. An exception of the user's
            module itself passes unchanged.
    """
    recipe, folder = loaded.recipe, loaded.folder
    if recipe.agent is None and recipe.command is None:
        raise ConfigError("recipe: there is neither an 'agent' nor a 'command' to run")
    named = None if recipe.agent is None else load_object(recipe.agent, what="agent", folder=folder)
    call = None if named is None else agent_call(named, adapters, what=str(recipe.agent))
    make_input = recipe.input and load_object(recipe.input, what="input", folder=folder)
    score = recipe.reward and load_object(recipe.reward, what="reward", folder=folder)
    return ResolvedAgent(
        call=call,
        command=recipe.command,
        make_input=awaitable(make_input, "input") if make_input else None,
        score=awaitable(heard(score), "reward") if score else None,
    )


def agent_call(
    agent: Any, adapters: Sequence[Adapter], *, what: str, fresh: bool = False
) -> AgentCall:
    """How to run `agent`: by an adapter, as a function, from a factory, or by its `run(task=...)`.

    Args:
        agent: the object.
        adapters: asked first, since they know their framework's objects; for what a factory
            returns, with those that its imports added.
        what: names it in errors.
        fresh: a factory made it for one rollout.

    Raises:
        ConfigError: it is none of these.
    """
    if not inspect.isroutine(agent):
        for adapter in adapters:
            wrapped = adapter.wrap(agent, fresh=fresh)
            if wrapped is not None:
                return wrapped
    if callable(agent):
        if not _takes_input(agent) and not fresh:
            return _factory_call(agent, adapters, what)
        return awaitable(agent, what)
    run = getattr(agent, "run", None)
    if callable(run):
        run_async = awaitable(run, what)
        return lambda given: run_async(task=given)
    raise ConfigError(
        f"agent: {what!r} is a {describe(agent)}, which can't be run. Name a function that takes the "
        "task, an object with run(task=...), an agent of a framework whose adapter is installed "
        f"({', '.join(adapted_modules()) or 'none is'}), or a function without parameters that returns "
        "one of these"
    )


def awaitable(function: Callable[..., Any], what: str) -> Callable[..., Awaitable[Any]]:
    """`function` as a coroutine function: in a thread of its own if it is synchronous.

    Raises:
        ConfigError: it can't be called.
    """
    if not callable(function):
        raise ConfigError(f"{what}: {describe(function)} can't be called; name a function")
    if is_async(function):
        return cast("Callable[..., Awaitable[Any]]", function)

    async def call(*args: Any, **kwargs: Any) -> Any:
        result = await run_in_thread(lambda: function(*args, **kwargs))
        return await result if inspect.isawaitable(result) else result

    return call


def is_async(agent: Any) -> bool:
    """Whether calling it gives a coroutine: a coroutine function, or an object with one as call."""
    method = getattr(agent, "__call__", None)  # noqa: B004 - the method itself is looked at
    return inspect.iscoroutinefunction(agent) or inspect.iscoroutinefunction(method)


def _takes_input(function: Callable[..., Any]) -> bool:
    """Whether it takes a positional argument: an agent does, a factory of agents doesn't."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except ValueError:
        return True  # a builtin without a signature: an agent, since factories are the user's own
    kinds = (
        inspect.Parameter.POSITIONAL_ONLY,
        inspect.Parameter.POSITIONAL_OR_KEYWORD,
        inspect.Parameter.VAR_POSITIONAL,
    )
    return any(one.kind in kinds for one in parameters)


def _factory_call(make: Callable[[], Any], adapters: Sequence[Adapter], what: str) -> AgentCall:
    async def call(given: Any) -> Any:
        agent: Any = make()
        if inspect.isawaitable(agent):
            agent = await agent
        return await agent_call(agent, adapters, what=f"{what}()", fresh=True)(given)

    return call
