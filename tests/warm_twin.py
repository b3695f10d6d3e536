"""Real processes of ours that start with core loaded: forked from a twin that each of pytest's processes has.

Importing the server takes 1.5 s of a processor and a client's package 2.5 s more; core's tests start some hundred
processes that import both. Such a process is pytest's own child, in everything as `warm_children` says; that the commands
start so from nothing is what `test_cli.py` and `test_cli_serve.py` show, which do without.

`python warm_twin.py SOCKET ROOM` is the twin; ROOM is for `warm_children.show_command`.
"""

from __future__ import annotations

import gc
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from warm_children import ROOM_FOR_COMMAND, be_the_twin, route

_COMMAND = str(Path(sys.executable).with_name("lightningrl"))
_UNABLE = {
    "preexec_fn": None, "shell": False, "gid": None, "gids": None, "uid": None, "umask": -1,
    "process_group": -1,
}  # fmt: skip
"""Arguments of `Popen._execute_child` that the twin can't honour, each with what it is if nobody gave it."""


class Twin:
    """The twin of this process: started by the first that wants it, gone when this process is."""

    def __init__(self) -> None:
        ours, twins = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.socket = ours
        self.process = subprocess.Popen(
            [sys.executable, __file__, str(twins.fileno()), ROOM_FOR_COMMAND],
            pass_fds=[twins.fileno()], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            # NumPy's threads would be missing in what is forked, which waits for them then.
            env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        )  # fmt: skip
        twins.close()

    @contextmanager
    def forking(self) -> Generator[None]:
        """Have it start our commands, and programs given as `python -c`, until the end of the block."""
        until_now = route(self.socket, _is_for_twin)
        try:
            yield
        finally:
            subprocess.Popen._execute_child = until_now  # type: ignore[attr-defined]

    def end(self) -> None:
        """Have it end."""
        self.socket.close()
        self.process.wait()


def _is_for_twin(wanted: Mapping[str, Any]) -> bool:
    if any(wanted[name] != usual for name, usual in _UNABLE.items()):
        return False
    if isinstance(wanted["args"], str):
        return False
    words = [str(one) for one in wanted["args"]]
    if words[0] == _COMMAND:
        return True
    ours = words[1:2] == ["-c"] or (
        words[1:2] == ["-m"] and words[2].split(".")[0] == "lightningrl"
    )
    return words[0] == sys.executable and ours


def _load() -> None:
    """Import what the children import."""
    import openai
    import openai.resources  # noqa: F401
    import psycopg  # noqa: F401
    import uvloop  # noqa: F401

    import lightningrl.cli.serve
    import lightningrl.recorder
    import lightningrl.runner.process
    import lightningrl.runner.supervisor  # noqa: F401


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _load()
    gc.freeze()
    be_the_twin(socket.socket(fileno=int(sys.argv[1])))
