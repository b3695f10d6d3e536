"""The server's process: it owns the store's file, serves it, and ends without losing anything.

Order of ending: waiting calls are told to ask again, the gateway drains, open requests finish, the
store is closed last. Leases are extended once at the start, because nobody could renew them while
the server was down.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import os
import socket
from collections.abc import AsyncGenerator, Callable, Generator
from pathlib import Path
from typing import Protocol

import uvicorn

from lightningrl.clock import Clock, SystemClock
from lightningrl.ending import stop_on_signals, stop_with_parent
from lightningrl.errors import ConfigError, LightningError
from lightningrl.event_loop import loop_factory
from lightningrl.gateway import Gateway
from lightningrl.gateway.asgi import Receive, Scope, Send
from lightningrl.server.app import Application
from lightningrl.store.base import Store
from lightningrl.store.sqlite import SqliteStore

_LOG = logging.getLogger(__name__)

EXPIRE_SECONDS = 1.0
"""How often leases and deadlines are looked at."""

RESTART_LEASE_SECONDS = 30.0
"""What every running attempt is given when the server starts."""

DRAIN_SECONDS = 10
"""How long open requests may take when the server ends."""


def serve(
    store_path: str | Path,
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    admin_key: str | None = None,
    ready: Callable[[str], None] | None = None,
    parent_fd: int | None = None,
) -> None:
    """Serve the store at `store_path`, and a gateway on it, until SIGTERM or SIGINT.

    Args:
        store_path: The SQLite file; made where there is none.
        host: The address to listen on.
        port: 0 takes a free one.
        admin_key: What callers of the store and of policy control must send. None: nothing, which
            only a loopback address may have.
        ready: Called with the server's URL when it answers.
        parent_fd: The reading end of a pipe; the server ends when its other end is closed, so that
            it never outlives the parent which holds that.

    Raises:
        ConfigError: `host` is not a loopback address and there is no admin key, or the address
            can't be listened on.
        StoreLocked: another process writes the store; the message names its URL.
    """
    listener = listen(host, port, admin_key)
    with contextlib.closing(listener), asyncio.Runner(loop_factory=loop_factory()) as runner:
        runner.run(_serve(Path(store_path), listener, admin_key, ready, parent_fd))


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach `host`."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def listen(host: str, port: int, admin_key: str | None) -> socket.socket:
    """A socket that listens; see `serve` for the arguments and errors.

    Its protocol is set to TCP (`socket.create_server` leaves it 0): only then asyncio turns off
    Nagle's delay, which would cost 40 ms per answer.
    """
    if admin_key is None and not is_loopback(host):
        raise ConfigError(
            f"listening on {host!r} lets other machines in, so the server needs a key; "
            "set LIGHTNINGRL_ADMIN_KEY, or listen on 127.0.0.1"
        )
    try:
        family, kind, proto, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, proto)
    except OSError as error:
        raise ConfigError(f"{host!r} is no address of this machine: {error.strerror}") from error
    try:
        if os.name == "posix":  # on Windows this would let two servers share the port
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(2048)
    except OSError as error:
        listener.close()
        raise ConfigError(
            f"port {port} of {host!r} can't be listened on ({error.strerror}); "
            "stop what uses it, or choose another port (0 takes a free one)"
        ) from error
    return listener


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


async def _serve(
    path: Path,
    listener: socket.socket,
    admin_key: str | None,
    ready: Callable[[str], None] | None,
    parent_fd: int | None,
) -> None:
    clock = SystemClock()
    store = SqliteStore.open(path, clock=clock)
    try:
        url = _url(listener)
        store.announce(url)
        application = _application(store, clock, admin_key)
        await store.renew_all_leases(RESTART_LEASE_SECONDS)
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        stop_on_signals(loop, stop.set)
        if parent_fd is not None:
            stop_with_parent(loop, parent_fd, stop.set)
        async with _expiring(store):
            await run(application, listener, stop, lambda: ready(url) if ready else None)
    finally:
        await store.close()


def _application(store: Store, clock: Clock, admin_key: str | None) -> Application:
    gateway = Gateway(store, clock=clock, require_keys=admin_key is not None, admin_key=admin_key)
    return Application(store, gateway, admin_key=admin_key)


class Served(Protocol):
    """An ASGI app with a beginning and an end; `Application` is one."""

    async def start(self) -> None:
        """Get ready to answer."""
        ...

    async def stop(self) -> None:
        """Refuse new work and end what waits, so that connections can be drained."""
        ...

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one HTTP request."""
        ...


async def run(
    application: Served,
    listener: socket.socket,
    stop: asyncio.Event,
    ready: Callable[[], None],
) -> None:
    """Serve `application` on `listener` until `stop` is set; return when all is drained."""
    await application.start()
    ended = asyncio.Event()
    server = _Server(
        uvicorn.Config(
            application,
            http="httptools",
            ws="none",
            lifespan="off",
            log_config=None,
            log_level="warning",
            access_log=False,
            server_header=False,
            date_header=False,
            timeout_keep_alive=75,
            timeout_graceful_shutdown=DRAIN_SECONDS,
        ),
        ready,
        ended,
    )

    async def end_when_told() -> None:
        await stop.wait()
        try:
            await application.stop()
        finally:
            ended.set()

    ending = asyncio.ensure_future(end_when_told())
    try:
        await server.serve(sockets=[listener])
    finally:
        stop.set()
        await ending


class _Server(uvicorn.Server):
    """uvicorn that says when it answers and leaves the signals to us."""

    def __init__(
        self, config: uvicorn.Config, ready: Callable[[], None], ended: asyncio.Event
    ) -> None:
        super().__init__(config)
        self._ready = ready
        self._ended = ended

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to answer."""
        await super().startup(sockets)
        self._ready()

    async def main_loop(self) -> None:
        """Answer until the application has ended; nothing here needs uvicorn's ten ticks a second."""
        await self._ended.wait()

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None]:
        """Signals end the server through `stop`, which drains in our order."""
        yield


@contextlib.asynccontextmanager
async def _expiring(store: Store) -> AsyncGenerator[None]:
    """Call `expire` every second."""

    async def expire() -> None:
        while True:
            await asyncio.sleep(EXPIRE_SECONDS)
            try:
                await store.expire()
            except LightningError:
                _LOG.exception("leases could not be looked at; trying again in a second")

    task = asyncio.ensure_future(expire())
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
