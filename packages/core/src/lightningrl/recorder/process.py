"""What a process records to: set once by `record`, used by `lightningrl.rollout` and `feedback`.

Invariant: without `record`, nothing is recorded here. Mistakes in how it is called are errors at once;
after that nothing of it reaches the user's code.
"""

from __future__ import annotations

import atexit
import concurrent.futures.thread  # noqa: F401  # pyright: ignore[reportUnusedImport]  - its hook at exit comes before ours
import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightningrl.capture.adapters import Adapters
from lightningrl.capture.client_calls import forget_client_calls, record_client_calls
from lightningrl.capture.rewards import finite
from lightningrl.conversation.responses import step_of_response
from lightningrl.errors import ConfigError
from lightningrl.recorder.recorder import Recorder
from lightningrl.recorder.redaction import Redact
from lightningrl.schema import FINAL, StepId
from lightningrl.settings import (
    check_names,
    client_key,
    record_sampling_rate,
    record_store,
    server_url,
)
from lightningrl.store.urls import Kind, kind_of, path_of

_log = logging.getLogger(__name__)

_EXIT_SECONDS = 5.0
"""How long the end of the process may wait for rollouts under way in other threads, and then for the store."""
MEMORY_BYTES = 64 << 20

_lock = threading.Lock()
_recorder: Recorder | None = None
_senders: dict[tuple[str, str | None], Recorder] = {}
"""By URL and key of a server: what writes feedback for rollouts that went through its gateway."""
_called = False
_closes_at_exit = False
_adapters = Adapters()


def record(
    store: str | Path | None = None,
    *,
    run: str = "live",
    sampling_rate: float | None = None,
    redact: Redact | None = None,
    key: str | None = None,
    memory_bytes: int = MEMORY_BYTES,
    install_adapters: bool = True,
) -> Recorder | None:
    """Record the rollouts of this process from now on, without a gateway: model calls go where they go.

    Each `lightningrl.rollout` is then written to `store`, in the background, when it has ended. A later
    call takes the place of an earlier one, which is flushed.

    Args:
        store: a file, `postgresql://...`, or the URL of `lightningrl serve`. A file has one writing
            process; several need one of the others. `None`: the setting `LIGHTNINGRL_RECORD`, and where
            that is not set nothing is recorded: rollouts just run.
        run: the run that the rollouts are of.
        sampling_rate: share of rollouts to record, from 0 to 1. `None`: the setting
            `LIGHTNINGRL_RECORD_SAMPLING_RATE`, or 1.
        redact: sees the rollout's `NewRollout` (its `task`), each event, and its `Attempt` (`output`,
            `failure`) before anything is written; returns what to write, with the same ids. `None` leaves
            an event out, or the rollout where it is returned for one of the other two. Where it raises
            the whole rollout is left out. It runs in the thread that writes. See also `redact_texts`.
        key: of the server. `None`: the setting `LIGHTNINGRL_KEY`. A runner's key will do.
        memory_bytes: the most that may wait in memory; rollouts beyond that are dropped and counted.
        install_adapters: whether to install the adapter of each framework that the program has imported, or
            imports later, as a runner does, and to record the calls of `openai` and `anthropic` clients that
            no adapter records; `lightningrl.recorder.uninstall_adapters` undoes both. An adapter that can't be
            installed when its framework is imported later is an error in the log.

    Returns:
        What tells of its work and can be flushed. `None`: nothing is recorded.

    Raises:
        ConfigError: an argument or a setting is wrong, or the adapter of a framework that is imported can't
            be installed.
    """
    global _recorder, _called
    check_names()
    url = record_store() if store is None else store
    rate = record_sampling_rate() if sampling_rate is None else sampling_rate
    _check(rate, memory_bytes, redact)
    made = None
    if url is not None:
        made = Recorder(
            _checked_url(url),
            key=key or client_key() if kind_of(url) is Kind.HTTP else key,
            run=run,
            sampling_rate=rate,
            redact=redact,
            memory_bytes=memory_bytes,
        )
        if install_adapters:
            _adapters.watch(forgiving=True)
            record_client_calls()
    with _lock:
        before, _recorder = _recorder, made
        _called = True
        _close_at_exit()
    if before is not None:
        before.close()
    return made


def uninstall_adapters() -> None:
    """Undo what `record` has hooked into frameworks and model clients."""
    forget_client_calls()
    _adapters.uninstall()


def _check(rate: float, memory_bytes: int, redact: object) -> None:
    if not 0.0 <= rate <= 1.0:
        raise ConfigError(f"sampling_rate is {rate!r}; give a share from 0 to 1")
    if memory_bytes <= 0:
        raise ConfigError(f"memory_bytes is {memory_bytes!r}; give a number above 0")
    if redact is not None and not callable(redact):
        raise ConfigError(f"redact is {redact!r}; give a function from a record to a record")


def _checked_url(url: str | Path) -> str:
    """Refuse what no store can be at; one that is only away is waited for."""
    if kind_of(url) is Kind.SQLITE:
        folder = path_of(url).absolute().parent
        if not folder.is_dir():
            raise ConfigError(f"there is no folder {str(folder)!r} for the store {str(url)!r}")
    return f"sqlite:{url}" if isinstance(url, Path) else url


def _close_at_exit() -> None:
    global _closes_at_exit
    if _closes_at_exit:
        return
    _closes_at_exit = True
    # Before threads that the interpreter waits for, and executors, which a store may use, end.
    at_exit: Callable[[Callable[[], Any]], Any] = getattr(
        threading, "_register_atexit", atexit.register
    )
    at_exit(_close)
    # After those threads, whose last rollouts may have ended since.
    atexit.register(_flush_again)


def _close() -> None:
    """What the main thread left under way in others may end first."""
    if _recorder is not None:
        _recorder.wait_ended(_EXIT_SECONDS)
    for one in _all():
        one.close(_EXIT_SECONDS)


def _flush_again() -> None:
    """Closing would need executors, which have ended by now."""
    if _recorder is not None:
        left = _recorder.wait_ended(0.0)
        if left:
            _log.warning("the process ends before %d rollout(s), which are not recorded", left)
    for one in _all():
        if one.is_writing:
            one.flush_for_good(_EXIT_SECONDS)


def _all() -> list[Recorder]:
    return [one for one in (_recorder, *_senders.values()) if one is not None]


def active() -> Recorder | None:
    """What this process records to. `None`: nothing."""
    return _recorder


def is_called() -> bool:
    """Whether `record` was called, be it that there is nothing to record to."""
    return _called


def feedback(
    rollout_id: str,
    value: float,
    *,
    name: str = FINAL,
    step: str | None = None,
    source: str = "user",
    server: str | None = None,
    key: str | None = None,
) -> None:
    """Reward a rollout that has ended, as often as opinions change: the latest value counts.

    Goes in the background to where `lightningrl.rollout` sends rollouts: to `server`, as `record` says, or
    to the setting `LIGHTNINGRL_SERVER`. After a `record` that records nothing, and without that setting, it
    does nothing. For a rollout that is not there (it was not in the sample, say) it is counted as dropped.

    Args:
        rollout_id: as `LiveRollout.id` said.
        value: a finite number.
        name: `final` is the reward of the rollout; others stand beside it.
        step: the step, or the id of the model response, that is rewarded. `None`: the rollout.
        source: who judged.
        server: URL of the server through whose gateway the rollout went.
        key: the server's key; a runner's will do. `None`: the setting `LIGHTNINGRL_KEY`.

    Raises:
        ValueError: `value` is NaN or infinite.
        ConfigError: it is not said where to.
    """
    number = finite(value, f"the feedback {name!r} for rollout {rollout_id!r}")
    recorder = _recorder_of_feedback(server, key)
    if recorder is not None:
        step_id = None if step is None else StepId(step_of_response(step))
        recorder.feedback(rollout_id, number, step_id, name, source)


def _recorder_of_feedback(server: str | None, key: str | None) -> Recorder | None:
    """What writes it. `None`: nothing is recorded."""
    url = server if server is not None or _recorder is not None else server_url()
    if url is not None:
        return _sender(url, key or client_key())
    if not _called:
        raise ConfigError(
            "feedback() goes where rollouts go: call lightningrl.record(...) when the process starts, set"
            " LIGHTNINGRL_SERVER, or give server=..."
        )
    return _recorder


def _sender(url: str, key: str | None) -> Recorder:
    with _lock:
        if (url, key) not in _senders:
            _senders[url, key] = Recorder(
                url, key=key, run="live", sampling_rate=1.0, redact=None, memory_bytes=MEMORY_BYTES
            )
            _close_at_exit()
        return _senders[url, key]
