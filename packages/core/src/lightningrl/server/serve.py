"""The server's process: it opens the store's database, serves it, and ends without losing anything.

Order of ending: waiting calls are told to ask again, the gateway drains, open requests finish, the
store is closed last. Leases are extended at the start, and after the store could not be written for some
time, because nobody could renew them meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import ipaddress
import logging
import os
import socket
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Sequence
from pathlib import Path
from typing import Literal, Protocol

import msgspec
import uvicorn

from lightningrl.errors import ConfigError
from lightningrl.gateway import Gateway
from lightningrl.gateway.asgi import Receive, Scope, Send
from lightningrl.gateway.limits import GatewayLimits
from lightningrl.gateway.observe import Observer
from lightningrl.keys import OPEN, AccessKeys
from lightningrl.machine.clock import Clock, SystemClock
from lightningrl.machine.connections import KEEP_ALIVE_SECONDS
from lightningrl.machine.event_loop import loop_factory
from lightningrl.machine.shutdown import stop_on_signals, stop_with_parent
from lightningrl.server.app import Application
from lightningrl.server.protocol import JoiningProtocol
from lightningrl.store.base import Retention, Store
from lightningrl.store.databases import open_database
from lightningrl.store.sql_store import SqlStore
from lightningrl.store.wire import BODY_LIMIT_BYTES

_LOG = logging.getLogger(__name__)

EXPIRE_SECONDS = 1.0
"""How often leases and deadlines are looked at."""

RETAIN_SECONDS = 60.0
"""How often what retention lets go is deleted."""

DRAIN_SECONDS = 10
"""How long open requests may take when the server ends."""


_COLLECT_AFTER = 20_000
"""Objects made and not freed before the youngest are looked through; Python's own number is 700."""

_OPEN_FILES = 10_240
"""What is asked for where the system sets no limit: macOS grants no more."""


class ServerOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What an operator may set beside address and keys."""

    store_body_bytes: int = BODY_LIMIT_BYTES
    """Longest request to the store, before and after decompression."""
    gateway: GatewayLimits = GatewayLimits()
    """What the gateway allows."""
    synchronous: Literal["NORMAL", "FULL"] = "NORMAL"
    """See `SqliteStore`."""
    retention: Retention | None = None
    """What is deleted, when the server starts and every minute. `None`: nothing."""


DEFAULTS = ServerOptions()


def serve(
    store_url: str | Path,
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    keys: AccessKeys = OPEN,
    options: ServerOptions = DEFAULTS,
    observers: Sequence[Observer] = (),
    ready: Callable[[str], None] | None = None,
    parent_fd: int | None = None,
) -> None:
    """Serve the store at `store_url`, and a gateway on it, until SIGTERM or SIGINT.

    Args:
        store_url: An SQLite file, or the URL of a PostgreSQL database, which several servers may serve;
            made where there is none.
        host: The address to listen on.
        port: 0 takes a free one.
        keys: What callers of the store and of policy control must send. Without an admin key
            nothing is asked for, which only a server on a loopback address may do.
        options: Limits, and how durable the store is.
        observers: Who is told of recorded calls, beside `/metrics`.
        ready: Called with the server's URL when it answers.
        parent_fd: The reading end of a pipe; the server ends when its other end is closed, so that
            it never outlives the parent which holds that.

    Raises:
        ConfigError: `host` is not a loopback address and there is no admin key, or the address
            can't be listened on.
        StoreLocked: another process writes the file; the message names its URL.
        StoreUnavailable: the database can't be reached.
    """
    _allow_open_files()
    listener = listen(host, port, keys)
    with (
        contextlib.closing(listener),
        _collecting_rarely(),
        asyncio.Runner(loop_factory=loop_factory()) as runner,
    ):
        runner.run(_serve(store_url, listener, keys, options, observers, ready, parent_fd))


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach `host`."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def listen(host: str, port: int, keys: AccessKeys) -> socket.socket:
    """A socket that listens; see `serve` for the arguments and errors.

    Its protocol is set to TCP (`socket.create_server` leaves it 0): only then asyncio turns off
    Nagle's delay, which would cost 40 ms per answer.
    """
    if (keys.runner or keys.viewer) and not keys.admin:
        raise ConfigError(
            "there are keys of runners or viewers and no admin key, so everyone would be an admin; "
            "set LIGHTNINGRL_ADMIN_KEY too"
        )
    if not keys.admin and not is_loopback(host):
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


def _allow_open_files() -> None:
    """Let this process have as many open files as the system grants it without asking.

    A call under way has two, and many systems begin with a limit of 1,024.
    """
    if sys.platform != "win32":  # which has no such limit
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        most = _OPEN_FILES if hard == resource.RLIM_INFINITY else hard
        if soft != resource.RLIM_INFINITY and soft < most:
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


@contextlib.contextmanager
def _collecting_rarely() -> Generator[None]:
    """Let Python look for garbage in cycles less often: a call makes little, and pays for each look.

    What was loaded so far is not looked through at all. Together a twentieth of a call's CPU time.
    """
    before = gc.get_threshold()
    gc.collect()
    gc.freeze()
    gc.set_threshold(_COLLECT_AFTER, *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)
        gc.unfreeze()


def url_of(listener: socket.socket) -> str:
    """Where a listening socket can be reached from this machine."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


async def _serve(
    store_url: str | Path,
    listener: socket.socket,
    keys: AccessKeys,
    options: ServerOptions,
    observers: Sequence[Observer],
    ready: Callable[[str], None] | None,
    parent_fd: int | None,
) -> None:
    clock = SystemClock()
    store = open_database(store_url, synchronous=options.synchronous)
    try:
        url = url_of(listener)
        store.announce(url)
        _LOG.info("serving %s at %s", store.name, url)
        application = _application(store, clock, keys, options, observers)
        await store.expire_regularly()
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        stop_on_signals(loop, stop.set)
        if parent_fd is not None:
            stop_with_parent(loop, parent_fd, stop.set)
        expiring = _every(EXPIRE_SECONDS, store.expire, first_after=EXPIRE_SECONDS)
        async with expiring, _retaining(store, options.retention):
            await run(application, listener, stop, lambda: ready(url) if ready else None)
    finally:
        await store.close()


def _application(
    store: SqlStore,
    clock: Clock,
    keys: AccessKeys,
    options: ServerOptions,
    observers: Sequence[Observer],
) -> Application:
    gateway = Gateway(
        store,
        clock=clock,
        limits=options.gateway,
        require_keys=bool(keys.admin),
        keys=keys,
        observers=observers,
    )
    return Application(store, gateway, keys=keys, body_limit=options.store_body_bytes)


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
            http=JoiningProtocol,
            ws="none",
            lifespan="off",
            log_config=None,
            log_level="warning",
            access_log=False,
            server_header=False,
            date_header=False,
            proxy_headers=False,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
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


def _retaining(
    store: Store, rule: Retention | None
) -> contextlib.AbstractAsyncContextManager[None]:
    """Delete what `rule` lets go, now and then."""
    if rule is None:
        return contextlib.nullcontext()

    async def retain() -> None:
        deleted = await store.retain(rule)
        if deleted:
            _LOG.info("deleted %d rollouts by age or size", deleted)

    return _every(RETAIN_SECONDS, retain, first_after=0.0)


@contextlib.asynccontextmanager
async def _every(
    seconds: float, work: Callable[[], Awaitable[object]], *, first_after: float
) -> AsyncGenerator[None]:
    """Do `work` every so many seconds; what fails of it is logged and tried again."""

    async def repeat() -> None:
        await asyncio.sleep(first_after)
        while True:
            try:
                await work()
            except Exception:  # noqa: BLE001  whatever it is, it must not end without a word
                _LOG.exception("this could not be done; trying again in %g seconds", seconds)
            await asyncio.sleep(seconds)

    task = asyncio.ensure_future(repeat())
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
