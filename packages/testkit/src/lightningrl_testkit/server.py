"""Real servers for tests: in a thread, where a test brings its own app, or in a process to kill."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import threading
from collections.abc import Coroutine
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from lightningrl.server.serve import Served, listen, run

_SERVE = """
import sys
from lightningrl.server import serve
path, port, key = sys.argv[1:]
serve(path, port=int(port), admin_key=key or None, ready=lambda url: print(url, flush=True))
"""


class ServerThread:
    """Serves an app on a free port, in an event loop and thread of its own."""

    def __init__(self, app: Served) -> None:
        """Start, and return when the server answers."""
        self.loop = asyncio.new_event_loop()
        self._listener = listen("127.0.0.1", 0, None)
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


class ServerProcess:
    """`lightningrl serve` in a process of its own."""

    def __init__(self, path: Path, *, port: int = 0, admin_key: str = "") -> None:
        """Start, and return when the server answers."""
        self.process = subprocess.Popen(
            [sys.executable, "-c", _SERVE, str(path), str(port), admin_key],
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
