"""Every error that the embedded engine raises; each message names what failed and the remedy.

Invariant: an `EngineDiedError` means that no later call on the same engine can succeed; every other
error leaves the engine serving, with the weights it had.
"""

from lightningrl.errors import EngineError

__all__ = [
    "EngineAsleepError",
    "EngineClosedError",
    "EngineDiedError",
    "EngineError",
    "NonFiniteLogitsError",
    "PromptTooLongError",
    "SamplingError",
    "UnsupportedModelError",
    "WeightSwapError",
]


class UnsupportedModelError(EngineError):
    """The model cannot be driven over a slot cache (sliding window, recurrent state, sinks, ...)."""


class SamplingError(EngineError, ValueError):
    """A sampling parameter is out of its range."""


class PromptTooLongError(EngineError, ValueError):
    """The prompt leaves no room for even one new token."""


class WeightSwapError(EngineError, ValueError):
    """The offered weights or their version were refused; the engine keeps the ones it had."""


class NonFiniteLogitsError(EngineError):
    """The model returned NaN or infinite scores for one request."""


class EngineAsleepError(EngineError):
    """The engine has given its memory away for a while, and the request with it."""


class EngineClosedError(EngineError):
    """The engine was not started yet, or is closed."""


class EngineDiedError(EngineError):
    """The worker thread crashed; the cause is chained."""
