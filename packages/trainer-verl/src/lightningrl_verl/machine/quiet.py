"""Keeps the chatter of third-party libraries out of the user's terminal.

Invariant: what was printed or warned inside `quiet` goes to our logger at DEBUG, exceptions pass
unchanged, and the process' logging, warnings and stdout are afterwards as they were before
(but for the loggers in `_CHATTY`, which stay at ERROR).
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Generator

logger = logging.getLogger(__name__)

_CHATTY = ("torch.fx._symbolic_trace", "transformers")
"""Loggers that warn about what no user can change, in the midst of training: of FSDP2's own hooks, of tokenizers."""


@contextlib.contextmanager
def quiet() -> Generator[None]:
    """Silence prints, warnings and INFO/WARNING records while third-party code loads.

    Importing verl installs a handler on the root logger (`verl/utils/logging_utils.py:39`); it is
    taken off again. Errors are logged as ever. stdout and warnings belong to the whole process, so
    use it around loading and saving, not around long work beside other threads.
    """
    root = logging.getLogger()
    handlers, level, disabled = list(root.handlers), root.level, logging.root.manager.disable
    printed = io.StringIO()
    try:
        logging.disable(max(disabled, logging.WARNING))
        with warnings.catch_warnings(), contextlib.redirect_stdout(printed):
            warnings.simplefilter("ignore")
            with without_progress_bars():
                yield
    finally:
        for name in _CHATTY:
            logging.getLogger(name).setLevel(logging.ERROR)
        logging.disable(disabled)
        root.handlers[:] = handlers
        root.setLevel(level)
        for line in printed.getvalue().splitlines():
            logger.debug("%s", line)


@contextlib.contextmanager
def without_progress_bars() -> Generator[None]:
    """Keep transformers from drawing bars for the files that it reads and writes."""
    from transformers.utils import logging as transformers_logging

    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()
