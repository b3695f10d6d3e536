"""A process that has loaded what a trainer on a CPU imports, and forks programs that begin with all of it.

`python warm_server.py SOCKET PID ROOM` serves at a Unix socket until process PID is gone; ROOM is for
`warm_children.show_command`. A request is a line of JSON; the
answers are the program's process id, and when it has ended its exit status. Invariant: it starts no thread, so that
processes may be forked from it.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import signal
import socket
import sys
from pathlib import Path
from typing import Any

from warm_children import fork_children, run_and_end, show_command

_LOOK_SECONDS = 1.0
"""How often it looks whether the process that it serves is still there."""

added_by_imports: set[str] = set()
"""Names of the environment that were not there before `load`."""


def load() -> None:
    """Import what trainers import, as `lightningrl train` does, and what the children of most do."""
    import matplotlib.backends.backend_agg
    import matplotlib.figure
    import matplotlib.ticker  # noqa: F401
    import torch.distributed.checkpoint.state_dict
    import torch.nested._internal.ops  # noqa: F401
    import uvicorn.lifespan.off
    import uvicorn.loops.uvloop  # noqa: F401

    import lightningrl.cli.serve
    import lightningrl.runner.process
    import lightningrl.runner.supervisor  # noqa: F401
    import lightningrl_autogen  # noqa: F401
    import lightningrl_bench_math.agent  # noqa: F401
    import lightningrl_verl.start.run
    import lightningrl_verl.worker.policy_rank
    from lightningrl.recipe import Optimiser
    from lightningrl_verl.machine.quiet import quiet
    from lightningrl_verl.worker.backend_config import BackendConfig, compose_verl_config
    from lightningrl_verl.worker.workers import select_platform

    select_platform("cpu")
    with quiet():
        import verl.utils.tensordict_utils
        import verl.utils.tracking
        import verl.workers.engine_workers  # noqa: F401
        from transformers import AutoModelForImageTextToText

        import lightningrl_verl.worker.language_engine  # noqa: F401

        # A trainer composes verl's defaults once, and verl asks transformers which models read images, which then
        # loads a hundred and fifty.
        compose_verl_config(BackendConfig(model_path="", optimiser=Optimiser(learning_rate=0.0)))
        AutoModelForImageTextToText._model_mapping.keys()


def main() -> None:
    """Serve, and be each program that is asked for, in a process of its own."""
    path, served = Path(sys.argv[1]), int(sys.argv[2])
    if os.fork():  # so that it is nobody's child, whose tests would end it
        os._exit(0)
    os.setsid()
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen(64)
    listener.settimeout(_LOOK_SECONDS)
    before = set(os.environ)
    load()
    added_by_imports.update(os.environ.keys() - before)
    gc.freeze()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while _is_there(served):
        try:
            connection, _ = listener.accept()
        except TimeoutError:
            continue
        if os.fork() == 0:
            listener.close()
            _serve(connection)
        connection.close()
    path.unlink()
    path.with_suffix(".lock").unlink(missing_ok=True)


def _is_there(process: int) -> bool:
    return Path(f"/proc/{process}").exists()


def _serve(connection: socket.socket) -> None:
    """Start one program; in the program's process this raises what the program ends with."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    with connection.makefile("r") as lines:
        line = lines.readline()
    if not line:  # somebody only wanted the server to be there
        os._exit(0)
    request: dict[str, Any] = json.loads(line)
    program = os.fork()
    if program == 0:
        connection.close()
        _run(**request)
    connection.sendall(f"{program}\n".encode())
    _, status = os.waitpid(program, 0)
    with contextlib.suppress(OSError):  # nobody wants to know any more
        connection.sendall(f"{os.waitstatus_to_exitcode(status)}\n".encode())
    os._exit(0)


def _run(
    program: str, arguments: list[str], folder: str, environment: dict[str, str], outputs: list[str]
) -> None:
    """Be the program: in its folder, with its environment and arguments, on its files."""
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    for number, output in enumerate(outputs, start=1):
        with Path(output).open("ab") as file:
            os.dup2(file.fileno(), number)
    show_command([sys.executable, "-c", program, *arguments])
    sys.argv = ["-c", *arguments]
    sys.path[0] = ""
    fork_children()
    run_and_end(lambda: exec(compile(program, "<string>", "exec"), {"__name__": "__main__"}))


if __name__ == "__main__":
    main()
