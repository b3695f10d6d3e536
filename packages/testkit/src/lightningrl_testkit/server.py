"""Real servers for tests: in a thread, where a test brings its own app, or in a process to kill."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import threading
from collections.abc import Coroutine, Generator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from lightningrl.gateway.asgi import Receive, Scope, Send
from lightningrl.keys import AccessKeys
from lightningrl.machine.clock import Clock
from lightningrl.server.serve import Served, listen, run
from lightningrl.server.store_api import StoreApi
from lightningrl.store.sqlite import SqliteStore

_SERVE = """
import sys
from lightningrl.keys import AccessKeys, ViewerKey
from lightningrl.machine.logs import configure_logs
from lightningrl.server import serve
path, port, admin, runner, viewer, log_level = sys.argv[1:]
configure_logs(log_level, "text")
viewers = tuple(map(ViewerKey.read, viewer.splitlines()))
keys = AccessKeys(tuple(admin.splitlines()), tuple(runner.splitlines()), viewers)
serve(path, port=int(port), keys=keys, ready=lambda url: print(url, flush=True))
"""


@contextmanager
def serving(store: str) -> Generator[tuple[str, subprocess.Popen[str]]]:
    """`lightningrl serve STORE` as a user starts it: its URL and its process, ended by SIGTERM."""
    program = Path(sys.executable).with_name("lightningrl")
    command = [program, "serve", store, "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line.startswith("serving "):
            raise RuntimeError(f"the server did not start: {line!r}")
        try:
            yield line.split()[-1], process
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                if process.wait(30) != 0:
                    raise RuntimeError(f"the server ended with {process.returncode}")


class ServerThread:
    """Serves an app on a free port, in an event loop and thread of its own."""

    def __init__(self, app: Served) -> None:
        """Start, and return when the server answers."""
        self.loop = asyncio.new_event_loop()
        self._listener = listen("127.0.0.1", 0, AccessKeys())
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._end = asyncio.Event()
        ready = threading.Event()
        serving = run(app, self._listener, self._end, ready.set)
        self._thread = threading.Thread(target=self.loop.run_until_complete, args=(serving,))
        self._thread.start()
        if not ready.wait(30):
            raise RuntimeError("the server did not start within 30 seconds")

    async def there(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Run `work` in the server's event loop; return its result in the caller's."""
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, self.loop))

    def begin_to_end(self) -> None:
        """Tell the server to end, and return at once."""
        self.loop.call_soon_threadsafe(self._end.set)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """End the server and wait for that."""
        self.begin_to_end()
        self._thread.join()
        self._listener.close()
        self.loop.close()


class OneStoreAfterTheOther:
    """An app for `ServerThread` that is given a new store for each test, so that all share one server."""

    def __init__(self) -> None:
        self._api: StoreApi | None = None

    async def start(self) -> None:
        """Nothing to start."""

    async def stop(self) -> None:
        """Nothing to stop."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one HTTP request."""
        if self._api is None:
            raise RuntimeError("no store was opened yet")
        await self._api(scope, receive, send)

    async def open(self, path: Path, clock: Clock | None = None) -> SqliteStore:
        """Serve the store at `path` from now on; whoever opened it closes it."""
        store = SqliteStore.open(path, clock=clock)
        self._api = StoreApi(store)
        return store


class ServerProcess:
    """`lightningrl serve` in a process of its own."""

    def __init__(
        self,
        path: Path,
        *,
        port: int = 0,
        admin_key: str = "",
        runner_key: str = "",
        viewer_key: str = "",
        log_level: str = "warning",
    ) -> None:
        """Start, and return when the server answers; several keys stand one a line."""
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-c", _SERVE, str(path), str(port)),
                *(admin_key, runner_key, viewer_key, log_level),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        self.url = self.process.stdout.readline().strip()
        if not self.url:
            raise RuntimeError(f"the server did not start: {self.stop()}")

    @property
    def port(self) -> int:
        """The port that it listens on."""
        return int(self.url.rpartition(":")[2])

    def kill(self) -> None:
        """End it at once, by SIGKILL where there is one."""
        self.process.kill()
        self.process.communicate()

    def stop(self) -> str:
        """End it by SIGTERM where there is one; return what it wrote to stderr."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.communicate(timeout=30)[1]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop it."""
        self.stop()
