"""Children of a warm process: what it starts with `python -m` in a session of its own is forked, not loaded anew.

A warm process forks a *twin* before its program begins: the same process, with everything loaded and no thread. When the
program starts a module of ours by `subprocess`, the twin forks it. Invariant: such a child is the program's own (it is
the program that waits for it), with the arguments, the environment, the folder, the open files and the session that it
would have had, and `/proc` shows the command that it would have had.
"""

from __future__ import annotations

import atexit
import ctypes
import fcntl
import inspect
import json
import os
import platform
import resource
import runpy
import signal
import socket
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

ROOM_FOR_COMMAND = "." * 8000
"""An argument that a warm server is started with: the place where children's commands are written."""

_CLONE_PARENT = 0x8000
_SYS_CLONE = {"x86_64": 56, "aarch64": 220}
_PIPES = ("p2cread", "p2cwrite", "c2pread", "c2pwrite", "errread", "errwrite")
"""Of `subprocess.Popen._execute_child`; a child reads the first, and writes the fourth and the last."""
_OURS = "lightningrl"
_HIGH = 512
"""Number from which files are kept while they get the numbers that they are to have."""
_ARG_START, _ARG_END = 47, 48
"""Fields of `/proc/self/stat`, counted from 0."""


def fork_children() -> None:
    """From now on have this process's children forked; to be called before it has threads."""
    ours, twins = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    if os.fork() == 0:
        ours.close()
        # A Ctrl-C for the program's group is not for it.
        os.setsid()
        be_the_twin(twins)
    twins.close()
    ours.set_inheritable(False)
    route(ours, lambda wanted: _is_ours(wanted["args"]) and wanted["start_new_session"])


def route(ours: socket.socket, is_for_twin: Callable[[Mapping[str, Any]], bool]) -> Any:
    """From now on have the twin at `ours` start those processes; returns what did it until now.

    Args:
        ours: a socket whose other end `be_the_twin` has, in a child of this process.
        is_for_twin: says so of the arguments of `Popen._execute_child`.
    """
    start_anew: Any = subprocess.Popen._execute_child  # type: ignore[attr-defined]
    signature = inspect.signature(start_anew)
    lock = threading.Lock()

    def start(popen: Any, *given: Any) -> None:
        wanted = signature.bind(popen, *given).arguments
        if not is_for_twin(wanted):
            start_anew(popen, *given)
            return
        pipes = [wanted[one] for one in _PIPES]
        reading, _, _, writing, _, errors = pipes
        streams = [
            own if stream == -1 else stream for own, stream in enumerate((reading, writing, errors))
        ]
        request = {
            "arguments": [os.fspath(one) for one in wanted["args"]],
            "folder": str(wanted["cwd"] or Path.cwd()),
            "environment": dict(os.environ if wanted["env"] is None else wanted["env"]),
            "files": [0, 1, 2, *wanted["pass_fds"]],
            "may_open": resource.getrlimit(resource.RLIMIT_NOFILE),
            "own_session": wanted["start_new_session"],
        }
        with lock:
            socket.send_fds(ours, [json.dumps(request).encode()], [*streams, *wanted["pass_fds"]])
            popen.pid = int(ours.recv(32))
        popen._child_created = True
        popen._close_pipe_fds(*pipes)

    subprocess.Popen._execute_child = start  # type: ignore[attr-defined]
    return start_anew


def _is_ours(args: Any) -> bool:
    words = [args] if isinstance(args, str) else list(args)
    return words[:2] == [sys.executable, "-m"] and words[2].split(".")[0] == _OURS


def be_the_twin(twins: socket.socket) -> NoReturn:
    """Fork children until the program has ended; each child ends as its own program does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    while True:
        message, files, _, _ = socket.recv_fds(twins, 1 << 20, 64)
        if not message:
            os._exit(0)
        child = _fork_a_sibling()
        if child == 0:
            twins.detach()
            _become(files, **json.loads(message))
        for one in files:
            os.close(one)
        twins.sendall(str(child).encode())


def _fork_a_sibling() -> int:
    """Fork a process whose parent is this one's parent; 0 in the new one."""
    python = ctypes.pythonapi
    # Not `CDLL`, which would let go of the interpreter's lock during the call.
    call = ctypes.PyDLL(None, use_errno=True).syscall
    python.PyOS_BeforeFork()
    child = call(_SYS_CLONE[platform.machine()], _CLONE_PARENT | signal.SIGCHLD, 0, 0, 0, 0)
    if child == 0:
        python.PyOS_AfterFork_Child()
    else:
        python.PyOS_AfterFork_Parent()
    if child < 0:
        raise OSError(ctypes.get_errno(), "clone failed")
    return child


def _become(
    received: Sequence[int],
    *,
    arguments: list[str],
    folder: str,
    environment: dict[str, str],
    files: list[int],
    may_open: tuple[int, int],
    own_session: bool,
) -> NoReturn:
    """Be the child: of a command `python -m MODULE ...`, `python -c SOURCE ...` or `lightningrl ...`."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if own_session:
        os.setsid()
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    kept = [fcntl.fcntl(one, fcntl.F_DUPFD, _HIGH) for one in received]
    os.closerange(3, _HIGH)
    for file, number in zip(kept, files, strict=True):
        os.dup2(file, number)
        os.close(file)
    resource.setrlimit(resource.RLIMIT_NOFILE, may_open)
    show_command(arguments)
    program = _program(arguments)
    fork_children()
    run_and_end(program)


def _program(arguments: list[str]) -> Callable[[], object]:
    """What a command runs, with `sys.argv` and `sys.path` as it would have them."""
    if Path(arguments[0]).name == _OURS:
        from lightningrl.cli import main

        sys.argv, sys.path[0] = arguments, str(Path(arguments[0]).parent)
        return main
    _, option, what, *rest = arguments
    sys.argv = [option, *rest]
    if option == "-c":
        sys.path[0] = ""
        return lambda: exec(compile(what, "<string>", "exec"), {"__name__": "__main__"})
    sys.path[0] = os.getcwd()
    # As it is in a process that has just begun.
    sys.modules.pop(what, None)
    return lambda: runpy.run_module(what, run_name="__main__", alter_sys=True)


def run_and_end(program: Callable[[], object]) -> NoReturn:
    """Run a program, and end the process as the interpreter would, but for freeing what was loaded.

    To free it, each forked process would first copy all of it.
    """
    code: object = 0
    try:
        program()
    except SystemExit as end:
        code = end.code
    except Exception:  # noqa: BLE001 - as the interpreter does
        traceback.print_exc()
        code = 1
    if not isinstance(code, int | None):
        sys.stderr.write(f"{code}\n")
        code = 1
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code or 0)


def show_command(arguments: Sequence[str]) -> None:
    """Let `/proc` show another command of this process, where there is room for it."""
    with open("/proc/self/stat") as file:
        fields = file.read().rpartition(")")[2].split()
    # The first two fields stand before the bracket.
    start, end = (int(fields[number - 2]) for number in (_ARG_START, _ARG_END))
    command = b"\0".join(os.fsencode(one) for one in arguments) + b"\0"
    if len(command) < end - start:
        ctypes.memmove(start, command.ljust(end - start, b"\0"), end - start)
