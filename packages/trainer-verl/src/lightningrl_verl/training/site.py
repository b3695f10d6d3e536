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
from lightningrl_verl.training.folder import RunFolder
from lightningrl_verl.training.processes import Child, last_lines, python_module

_CLI = "lightningrl.cli"

_READY_SECONDS = 30.0
"""Longest time that the server may take to listen."""


@dataclass(frozen=True)
class Site:
    """What the trainer talks to."""

    url: str
    store: HttpStore
    gateway: GatewayClient
    children: tuple[Child, ...]

    async def watch(self) -> None:
        """Never return; raise when a child is given up.

        Raises:
            RunError: with the child's last lines.
        """
        done, _ = await asyncio.wait(
            [child.failure for child in self.children], return_when=asyncio.FIRST_EXCEPTION
        )
        for one in done:
            one.result()


@contextlib.asynccontextmanager
async def site(
    loaded: LoadedRecipe, overrides: Sequence[str], folder: RunFolder
) -> AsyncGenerator[Site]:
    """Start the server, then the runners; end both when the block ends.

    Raises:
        RunError: the server did not come up; the message has its last lines.
    """
    recipe = loaded.recipe
    key = secrets.token_urlsafe(24)
    ready: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    port = [recipe.gateway.port]

    def on_line(line: str) -> None:
        if not ready.done():
            url = line.rsplit(" ", 1)[1]
            port[0] = int(url.rsplit(":", 1)[1])
            ready.set_result(url)

    server = Child(
        "server",
        lambda pipe: python_module(
            _CLI,
            "serve",
            str(folder.store),
            "--port",
            str(port[0]),
            "--parent-fd",
            str(pipe),
        ),
        log=folder.logs / "server.log",
        environment={"LIGHTNINGRL_ADMIN_KEY": key},
        on_line=on_line,
    )
    async with server:
        url = await _ready(server, ready, folder)
        runners = Child(
            "runner",
            lambda pipe: python_module(
                _CLI,
                "runner",
                str(loaded.path),
                *overrides,
                "--server",
                url,
                "--parent-fd",
                str(pipe),
            ),
            log=folder.logs / "runner.log",
            environment={"LIGHTNINGRL_KEY": key},
        )
        async with contextlib.AsyncExitStack() as stack:
            store = HttpStore.connect(url, key=key)
            stack.push_async_callback(store.close)
            gateway = GatewayClient(url, key)
            stack.push_async_callback(gateway.close)
            await stack.enter_async_context(runners)
            yield Site(url, store, gateway, (server, runners))


async def _ready(server: Child, ready: asyncio.Future[str], folder: RunFolder) -> str:
    log = folder.logs / "server.log"
    done, _ = await asyncio.wait(
        [ready, server.failure], timeout=_READY_SECONDS, return_when=asyncio.FIRST_COMPLETED
    )
    if server.failure in done:
        server.failure.result()
    if ready not in done:
        raise RunError(
            f"the server was not ready within {_READY_SECONDS:.0f} s. Its last lines:\n"
            + last_lines(log)
        )
    return ready.result()
