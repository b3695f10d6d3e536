"""Where a child process listens, as its output says."""

from __future__ import annotations

import asyncio
import re

_SERVING = re.compile(r"serving .+ at (?P<url>http://.+:(?P<port>\d+))")


class Listening:
    """Where a child listens, once it says so; one that is started again is given the same port."""

    def __init__(self, port: int = 0) -> None:
        self.port = port
        """0 until it is known, where the child may choose it."""
        self.url: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        """From this machine, also where the child listens on all addresses."""

    def read(self, line: str) -> None:
        """Read a line of the child's output: `serving NAME at URL`. All others say nothing, such as a library's."""
        found = _SERVING.fullmatch(line.strip())
        if found is None or self.url.done():
            return
        self.port = int(found["port"])
        here = found["url"].replace("//0.0.0.0:", "//127.0.0.1:").replace("//[::]:", "//[::1]:")
        self.url.set_result(here)
