"""One machine as a whole cluster: the server and the runners beside the trainer, by the same interfaces."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass

from lightningrl.errors import RunError
from lightningrl.gateway.control import GatewayClient
from lightningrl.recipe import LoadedRecipe
from lightningrl.store.http import HttpStore
from lightningrl_verl.machine.listening import Listening
from lightningrl_verl.machine.processes import Child, last_lines, python_module
from lightningrl_verl.serving.endpoint_key import endpoint_key
from lightningrl_verl.start.folder import RunFolder

_CLI = "lightningrl.cli"

_READY_SECONDS = 60.0
"""Longest time that the server may take to listen."""


_GRACE_SECONDS = 3.0
"""How long agents may go on when the run is stopped; then their rollouts are given back."""


@dataclass(frozen=True)
class Site:
    """What the trainer talks to."""

    url: str
    """Of the server, from this machine."""
    store: HttpStore
    gateway: GatewayClient
    server: Child
    """Running."""
    runners: Child
    """Not started: an engine must answer before agents are run."""

    async def watch(self) -> None:
        """Never return; raise when a child is given up.

        Raises:
            RunError: with the child's last lines.
        """
        done, _ = await asyncio.wait(
            [self.server.failure, self.runners.failure], return_when=asyncio.FIRST_COMPLETED
        )
        for one in done:
            one.result()


@contextlib.asynccontextmanager
async def site(
    loaded: LoadedRecipe, overrides: Sequence[str], folder: RunFolder
) -> AsyncGenerator[Site]:
    """Start the server and prepare the runners; end the server when the block ends.

    Raises:
        ConfigError: the variable that should hold the key of live rollouts is not set.
        RunError: the server did not come up; the message has its last lines.
    """
    recipe = loaded.recipe
    key, runner_key = secrets.token_urlsafe(24), secrets.token_urlsafe(24)
    keys = [runner_key]
    if recipe.live is not None:
        live_key = endpoint_key("live.key", recipe.live.key)
        assert live_key is not None  # it is the value of a variable that is set
        keys.append(live_key)
    listening = Listening(recipe.gateway.port)
    server = Child(
        "server",
        lambda pipe: python_module(
            _CLI,
            "serve",
            str(folder.store),
            *("--host", recipe.gateway.host),
            *("--port", str(listening.port)),
            *("--parent-fd", str(pipe)),
        ),
        log=folder.logs / "server.log",
        environment={"LIGHTNINGRL_ADMIN_KEY": key, "LIGHTNINGRL_RUNNER_KEY": "\n".join(keys)},
        on_line=listening.read,
    )
    async with server:
        url = await _ready(server, listening.url, folder)
        async with contextlib.AsyncExitStack() as stack:
            store = HttpStore.connect(url, key=key)
            stack.push_async_callback(store.close)
            gateway = GatewayClient(url, key)
            stack.push_async_callback(gateway.close)
            yield Site(
                url, store, gateway, server, _runners(loaded, overrides, folder, url, runner_key)
            )


def _runners(
    loaded: LoadedRecipe, overrides: Sequence[str], folder: RunFolder, url: str, key: str
) -> Child:
    return Child(
        "runner",
        lambda pipe: python_module(
            _CLI,
            "runner",
            str(loaded.path),
            *overrides,
            *("--server", url, "--parent-fd", str(pipe)),
            *("--grace-seconds", str(_GRACE_SECONDS)),
        ),
        log=folder.logs / "runner.log",
        environment={"LIGHTNINGRL_KEY": key},
        # The supervisor gives its workers their grace, then time to give their rollouts back.
        stop_seconds=2 * _GRACE_SECONDS + 15,
    )


async def _ready(server: Child, url: asyncio.Future[str], folder: RunFolder) -> str:
    done, _ = await asyncio.wait(
        [url, server.failure], timeout=_READY_SECONDS, return_when=asyncio.FIRST_COMPLETED
    )
    if server.failure in done:
        server.failure.result()
    if url not in done:
        raise RunError(
            f"the server was not ready within {_READY_SECONDS:.0f} s. Its last lines:\n"
            + last_lines(folder.logs / "server.log")
        )
    return url.result()
