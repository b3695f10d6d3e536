"""The program of one worker process: `python -m lightningrl.runner.process RECIPE --server URL`.

Invariant: the environment is settled before any of the user's code is imported. Model clients find the
server under a key that identifies nothing, and the runner's own key is not there to be found.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import sys
import traceback
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from lightningrl.capture.adapters import Adapters, adapted_modules
from lightningrl.capture.client import install_client_patch
from lightningrl.capture.variables import point_at, take_changed
from lightningrl.errors import ConfigError
from lightningrl.machine.event_loop import allow_nesting, loop_factory
from lightningrl.machine.shutdown import stop_on_signals, stop_with_parent
from lightningrl.recipe import LoadedRecipe, Recipe, load_recipe
from lightningrl.runner.alarms import refuse_alarms
from lightningrl.runner.attempt import AttemptRunner
from lightningrl.runner.flush import EventFlusher
from lightningrl.runner.guard import EXIT_REPLACE, LoopGuard
from lightningrl.runner.resolve import ResolvedAgent, resolve_agent
from lightningrl.runner.worker import Worker, WorkerLimits
from lightningrl.store import open_store

_log = logging.getLogger(__name__)

KEY_VARIABLE = "LIGHTNINGRL_KEY"

EXIT_CONFIG = 78
"""The recipe or the agent's module is wrong: starting again would not help. (`EX_CONFIG`)"""

GRACE_SECONDS = 20.0
"""After a stop, attempts may go on for so long before they are released, unless told otherwise."""


def worker_command(
    recipe: Path,
    server_url: str,
    *,
    python: str | None = None,
    concurrency: int = 0,
    overrides: Sequence[str] = (),
    grace_seconds: float = GRACE_SECONDS,
    log_level: str = "warning",
) -> list[str]:
    """The command of one worker, which ends when its stdin is closed: give it a pipe.

    Args:
        recipe: its file, which the worker reads itself.
        server_url: of `lightningrl serve`.
        python: interpreter of the agent's own environment. `None`: this one.
        concurrency: attempts at a time; 0 is the recipe's.
        overrides: `key=value` texts for the recipe.
        grace_seconds: after a stop, attempts may go on for so long before they are released.
        log_level: of its log on stderr.
    """
    command = [python or sys.executable, "-m", "lightningrl.runner.process", str(recipe)]
    command += ["--server", server_url, "--concurrency", str(concurrency), "--parent-is-stdin"]
    command += ["--grace-seconds", str(grace_seconds), "--log-level", log_level]
    return [*command, *(part for one in overrides for part in ("--override", one))]


def worker_environment(key: str | None) -> dict[str, str]:
    """This process's environment, with `key` and no other as the runner's key."""
    hidden = (KEY_VARIABLE, f"{KEY_VARIABLE}_FILE")
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    return environment if key is None else {**environment, KEY_VARIABLE: key}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one worker until SIGTERM, SIGINT, or the end of its parent."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(
        level=options.log_level.upper(), format="%(asctime)s %(name)s %(levelname)s %(message)s"
    )
    key = prepare_environment(options.server)
    parent = _keep_stdin() if options.parent_is_stdin else None
    try:
        loaded = load_recipe(options.recipe, options.override)
        agent = _load_agent(loaded)
        make_loop = _loop_factory(loaded.recipe)
    except ConfigError as error:
        sys.stderr.write(f"error: {error}\n")
        return EXIT_CONFIG
    except Exception:  # noqa: BLE001 - the user's module raised while it was imported: theirs to read
        traceback.print_exc()
        return EXIT_CONFIG
    recipe = loaded.recipe
    limits = WorkerLimits(
        concurrency=options.concurrency or recipe.runner.concurrency,
        lease_seconds=recipe.runner.lease_seconds,
        grace_seconds=options.grace_seconds,
    )
    with asyncio.Runner(loop_factory=make_loop) as runner:
        tainted = runner.run(_work(loaded, agent, options.server, key, limits, parent))
    return EXIT_REPLACE if tainted else 0


def prepare_environment(server_url: str) -> str | None:
    """Point model clients at the server; take the runner's key out of the environment, return it."""
    point_at(server_url)
    return os.environ.pop(KEY_VARIABLE, None)


def keep_traces_home(adapted: Collection[str]) -> None:
    """Switch OpenAI's Agents SDK's tracing off, which would send traces to OpenAI under the placeholder key.

    Its adapter sees to that itself, and leaves the user's processors and keys alone. Without it, only the
    variable is there, which the SDK reads at the first trace; one that the user has set stays.

    Args:
        adapted: the modules that there are adapters for.
    """
    if "agents" not in adapted:
        os.environ.setdefault("OPENAI_AGENTS_DISABLE_TRACING", "true")


def _loop_factory(recipe: Recipe) -> Callable[[], asyncio.AbstractEventLoop] | None:
    """`None`: asyncio's own loop.

    Raises:
        ConfigError: uvloop is asked for and not installed.
    """
    if recipe.runner.event_loop == "asyncio":
        return None
    factory = loop_factory()
    if factory is None:
        raise ConfigError(
            "runner.event_loop: uvloop is not installed here; install it, or say asyncio"
        )
    return factory


def aliases(recipe: Recipe) -> frozenset[str]:
    """Model names that the run answers for: its policies and what they replace."""
    return frozenset(
        name for alias, policy in recipe.policies.items() for name in (alias, *policy.replaces)
    )


def _load_agent(loaded: LoadedRecipe) -> ResolvedAgent:
    refuse_alarms()
    install_client_patch()
    keep_traces_home(adapted_modules())
    adapters = Adapters()
    adapters.watch()
    agent = resolve_agent(loaded, adapters.installed)
    _look_at_variables(loaded.recipe)
    return agent


def _look_at_variables(recipe: Recipe) -> None:
    """Take what the agent's module has set for the user's own, and put ours back.

    Raises:
        ConfigError: a base URL was among it, and no policy `replaces` a model: the module's clients would go there.
    """
    changed = take_changed()
    if not changed:
        return
    listing = ", ".join(f"{name} to {value!r}" for name, value in changed.items())
    told = (
        f"while the agent's module was imported, it set {listing} (load_dotenv(override=True) does)"
    )
    if not any(policy.replaces for policy in recipe.policies.values()):
        raise ConfigError(
            f"{told}, so its clients would call that host instead of the policy. List the models that the policy"
            " answers for under policies.NAME.replaces, or leave variables alone that are set: load_dotenv()"
        )
    _log.warning("%s; only calls of models under policies.NAME.replaces reach the policy", told)


async def _work(
    loaded: LoadedRecipe,
    agent: ResolvedAgent,
    server_url: str,
    key: str | None,
    limits: WorkerLimits,
    parent_fd: int | None,
) -> bool:
    """Work until told to stop; return whether the process must be replaced."""
    store = open_store(server_url, key=key)
    runner = AttemptRunner(
        store=store,
        agent=agent,
        flusher=EventFlusher(store),
        server_url=server_url.rstrip("/"),
        aliases=aliases(loaded.recipe),
        folder=loaded.folder,
    )
    worker = Worker(store, runner, loaded.recipe.name, limits)
    loop = asyncio.get_running_loop()
    allow_nesting(loop)  # agents may, and others' are under way
    stop_on_signals(loop, worker.stop)
    if parent_fd is not None:
        stop_with_parent(loop, parent_fd, worker.stop)
    guard = LoopGuard(loop, seconds=max(60.0, 2 * limits.lease_seconds))
    guard.start()
    try:
        await worker.run()
    finally:
        guard.stop()
        await store.close()
    return worker.tainted


def _keep_stdin() -> int:
    """Move the parent's pipe away from stdin, so that no agent reads it; return its descriptor."""
    kept = os.dup(0)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    return kept


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="lightningrl.runner.process")
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--server", required=True, help="URL of lightningrl serve")
    parser.add_argument("--concurrency", type=int, default=0, help="0: the recipe's")
    parser.add_argument("--override", action="append", default=[], help="key=value")
    parser.add_argument("--grace-seconds", type=float, default=GRACE_SECONDS)
    parser.add_argument("--parent-is-stdin", action="store_true", help="stop when stdin closes")
    parser.add_argument("--log-level", default="warning")
    return parser


if __name__ == "__main__":
    sys.exit(main())
