"""Keeps worker processes running.

Invariant: workers never outlive the supervisor, and the supervisor never outlives its parent: each
watches a pipe that its parent holds open, so that even `kill -9` ends all below.
"""

from __future__ import annotations

import logging
import signal
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lightningrl.machine.shutdown import when_closed
from lightningrl.runner.guard import EXIT_REPLACE
from lightningrl.runner.process import (
    EXIT_CONFIG,
    GRACE_SECONDS,
    worker_command,
    worker_environment,
)

_log = logging.getLogger(__name__)

_POLL_SECONDS = 0.2
_FIRST_BACKOFF_SECONDS = 0.5
_LAST_BACKOFF_SECONDS = 30.0
_SLACK_SECONDS = 10.0
"""For a worker's last poll and its last words to the store, beside the grace periods."""
_HEALTHY_SECONDS = 30.0
"""A worker that lived so long starts its backoff anew."""


@dataclass
class _Slot:
    """The place of one worker process."""

    process: subprocess.Popen[bytes] | None = None
    started_at: float = 0.0
    backoff_seconds: float = _FIRST_BACKOFF_SECONDS
    start_at: float = 0.0
    """Monotonic instant from which it may be started (again)."""


@dataclass
class Supervisor:
    """Starts `processes` workers, and starts those anew that die."""

    command: Sequence[str]
    """Of a worker."""
    environment: dict[str, str]
    processes: int
    grace_seconds: float
    """How long workers get to finish what they hold; they are killed a little later."""
    _stopping: bool = field(default=False, init=False)
    """A plain flag: a signal handler that sets an `Event` may find its lock held, by the very thread
    that it interrupted."""

    def stop(self) -> None:
        """Stop all workers; `run` returns when they have ended. Safe in signal handlers."""
        self._stopping = True

    def run(self) -> int:
        """Return 0 after `stop`, or a worker's status if starting it again would not help."""
        slots = [_Slot() for _ in range(self.processes)]
        status = 0
        try:
            while status == 0 and not self._stopping:
                status = max(self._tend(slot) for slot in slots)
                time.sleep(_POLL_SECONDS)
        finally:
            self._reap([slot.process for slot in slots if slot.process is not None])
        return status

    def _tend(self, slot: _Slot) -> int:
        """Look after one worker; return a status other than 0 if all of this should end."""
        now = time.monotonic()
        if slot.process is None:
            if now >= slot.start_at:
                self._start(slot, now)
            return 0
        status = slot.process.poll()
        if status is None:
            return 0
        slot.process = None
        if status == EXIT_CONFIG:
            return status
        if status == EXIT_REPLACE:
            return 0
        if now - slot.started_at > _HEALTHY_SECONDS:
            slot.backoff_seconds = _FIRST_BACKOFF_SECONDS
        slot.start_at = now + slot.backoff_seconds
        _log.warning(
            "a worker ended with status %d; another one starts in %.1f s",
            status,
            slot.backoff_seconds,
        )
        slot.backoff_seconds = min(2 * slot.backoff_seconds, _LAST_BACKOFF_SECONDS)
        return 0

    def _start(self, slot: _Slot, now: float) -> None:
        slot.started_at = now
        slot.process = subprocess.Popen(
            self.command,
            env=self.environment,
            stdin=subprocess.PIPE,
            # Ctrl-C goes to a terminal's whole group; the workers are told by the pipe alone.
            start_new_session=True,
        )

    def _reap(self, processes: Sequence[subprocess.Popen[bytes]]) -> None:
        for process in processes:
            assert process.stdin is not None  # it was asked for as a pipe
            process.stdin.close()
        deadline = time.monotonic() + 2 * self.grace_seconds + _SLACK_SECONDS
        for process in processes:
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                _log.warning("worker process %d doesn't end and is killed", process.pid)
                process.kill()
                process.wait()


def run_workers(
    recipe_path: Path,
    server_url: str,
    *,
    processes: int,
    concurrency: int,
    key: str | None = None,
    parent_fd: int | None = None,
    python: str | None = None,
    overrides: Sequence[str] = (),
    grace_seconds: float = GRACE_SECONDS,
    log_level: str = "warning",
) -> int:
    """Run worker processes until SIGTERM, SIGINT, or the end of the parent.

    Args:
        recipe_path: the recipe; each worker reads it.
        server_url: of `lightningrl serve`.
        processes: how many.
        concurrency: attempts at a time in each; 0 is the recipe's.
        key: the runner's or admin's key; reaches the workers by their environment, not their command.
        parent_fd: the read end of a pipe that the parent holds open. `None`: nobody watches.
        python: interpreter of the agent's own environment. `None`: this one.
        overrides: `key=value` texts for the recipe.
        grace_seconds: after a stop, attempts may go on for so long before they are released.
        log_level: of the workers.

    Returns:
        0, or the exit status of a worker whose recipe or agent is wrong.
    """
    command = worker_command(
        recipe_path,
        server_url,
        python=python,
        concurrency=concurrency,
        overrides=overrides,
        grace_seconds=grace_seconds,
        log_level=log_level,
    )
    supervisor = Supervisor(command, worker_environment(key), processes, grace_seconds)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: supervisor.stop())
    if parent_fd is not None:
        when_closed(parent_fd, supervisor.stop)
    return supervisor.run()
