"""Token ids and log-probs between their two forms: bytes on the wire, arrays in memory."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

TokenIds = NDArray[np.int32]
LogProbs = NDArray[np.float32]

_IDS = np.dtype("<i4")
_LOGPROBS = np.dtype("<f4")


def ids_from_bytes(data: bytes) -> TokenIds:
    """Little-endian int32 bytes as an array, read-only, without a copy where possible."""
    return np.frombuffer(data, dtype=_IDS).astype(np.int32, copy=False)


def logprobs_from_bytes(data: bytes) -> LogProbs:
    """Little-endian float32 bytes as an array, read-only, without a copy where possible."""
    return np.frombuffer(data, dtype=_LOGPROBS).astype(np.float32, copy=False)
