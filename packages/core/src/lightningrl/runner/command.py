"""Agents in other languages: one program run for each attempt, which talks to the gateway by itself.

Invariant: when `run_command` returns or raises, nothing of the program's process group runs any more.
"""

from __future__ import annotations

import asyncio
import os
import signal
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from lightningrl.capture.context import RolloutContext
from lightningrl.capture.variables import for_attempt
from lightningrl.errors import AgentError, CommandFailed

GRACE_SECONDS = 5.0
"""Between SIGTERM and SIGKILL."""
TAIL_BYTES = 4000
"""How much of what the program wrote last is kept for the error message."""


async def run_command(
    command: Sequence[str], task: Mapping[str, Any], context: RolloutContext, *, folder: Path
) -> Any:
    """Run `command` in `folder` on one task; return what it wrote to `LIGHTNINGRL_OUTPUT_FILE`.

    The file is read as JSON, and as text where it is none. `None`: the program wrote no file.
    Cancelling sends SIGTERM, and SIGKILL after `GRACE_SECONDS`, to the process group.

    Raises:
        AgentError: it can't be started.
        CommandFailed: it ended with another exit status than 0.
    """
    with tempfile.TemporaryDirectory(prefix="lightningrl-") as temporary:
        files = _Files(Path(temporary))
        files.task.write_bytes(msgspec.json.encode(task))
        files.resources.write_bytes(msgspec.json.encode(context.resources))
        environment = _environment(context, files)
        tail = await _run(command, environment, folder)
        if tail is not None:
            raise CommandFailed(f"{' '.join(command)!r} {tail}")
        if not files.output.exists():
            return None
        return _decode(files.output.read_bytes())


class _Files:
    """What the program and the runner tell each other."""

    def __init__(self, folder: Path) -> None:
        self.task = folder / "task.json"
        self.resources = folder / "resources.json"
        self.output = folder / "output"


def _environment(context: RolloutContext, files: _Files) -> dict[str, str]:
    return {
        # Else a program that uses OpenAI's Agents SDK would send its traces to OpenAI with the attempt's key.
        "OPENAI_AGENTS_DISABLE_TRACING": "true",
        **os.environ,
        "LIGHTNINGRL_TASK_FILE": str(files.task),
        "LIGHTNINGRL_RESOURCES_FILE": str(files.resources),
        "LIGHTNINGRL_OUTPUT_FILE": str(files.output),
        **for_attempt(context),
    }


def _decode(raw: bytes) -> Any:
    try:
        return msgspec.json.decode(raw)
    except msgspec.DecodeError:
        return raw.decode("utf-8", "replace")


async def _run(command: Sequence[str], environment: Mapping[str, str], folder: Path) -> str | None:
    """Run it to its end. `None`: exit status 0, else the status and the end of its output."""
    try:
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env=dict(environment),
            cwd=folder,
            start_new_session=True,
        )
    except OSError as error:
        raise AgentError(f"{command[0]!r} can't be started: {error}") from error
    tail = bytearray()
    reading = asyncio.create_task(_keep_tail(process, tail))
    try:
        status = await process.wait()
    except asyncio.CancelledError:
        await _terminate(process)
        raise
    finally:
        # Children that the program left behind would hold the pipe, and our thread of control, open.
        _signal_group(process, signal.SIGKILL)
        await reading
    if status == 0:
        return None
    return f"ended with status {status}; it wrote last:\n{tail.decode('utf-8', 'replace').strip()}"


async def _keep_tail(process: asyncio.subprocess.Process, tail: bytearray) -> None:
    assert process.stdout is not None  # it was asked for as a pipe
    while chunk := await process.stdout.read(65536):
        tail += chunk
        del tail[:-TAIL_BYTES]


async def _terminate(process: asyncio.subprocess.Process) -> None:
    _signal_group(process, signal.SIGTERM)
    try:
        await asyncio.wait_for(process.wait(), GRACE_SECONDS)
    except TimeoutError:
        _signal_group(process, signal.SIGKILL)
        await process.wait()


def _signal_group(process: asyncio.subprocess.Process, number: signal.Signals) -> None:
    try:
        os.killpg(process.pid, number)
    except ProcessLookupError:
        return  # all of it has ended already
