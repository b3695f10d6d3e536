"""The process of `lightningrl serve --policy`: a model in use, answered without a store."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

from lightningrl.gateway.direct import DirectGateway
from lightningrl.gateway.limits import GatewayLimits
from lightningrl.keys import OPEN
from lightningrl.machine.clock import SystemClock
from lightningrl.machine.event_loop import loop_factory
from lightningrl.machine.shutdown import stop_on_signals, stop_with_parent
from lightningrl.schema import Endpoint, RewriteRules
from lightningrl.server.serve import listen, run, url_of


def serve_direct(
    endpoint: Endpoint,
    model: str,
    *,
    host: str,
    port: int,
    rules: RewriteRules,
    limits: GatewayLimits,
    ready: Callable[[str], None],
    parent_fd: int | None = None,
) -> None:
    """Answer OpenAI's and Anthropic's clients by one engine, until SIGTERM or SIGINT.

    Args:
        endpoint: the engine's.
        model: the name by which it is asked, and which `/v1/models` tells.
        host: a loopback address, as there are no keys.
        port: 0 takes a free one.
        rules: how requests are rewritten before the engine sees them.
        limits: the gateway's bounds.
        ready: called with the server's URL when it answers.
        parent_fd: see `serve`.

    Raises:
        ConfigError: `host` is not a loopback address, or can't be listened on.
    """
    listener = listen(host, port, OPEN)
    application = DirectGateway(endpoint, model, clock=SystemClock(), rules=rules, limits=limits)

    async def serve() -> None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        stop_on_signals(loop, stop.set)
        if parent_fd is not None:
            stop_with_parent(loop, parent_fd, stop.set)
        await run(application, listener, stop, lambda: ready(url_of(listener)))

    with contextlib.closing(listener), asyncio.Runner(loop_factory=loop_factory()) as runner:
        runner.run(serve())
