"""Token ids and log-probs between their two forms: bytes on the wire, arrays in memory."""

from __future__ import annotations

import sys

import numpy as np
from numpy.typing import NDArray

TokenIds = NDArray[np.int32]
LogProbs = NDArray[np.float32]

_IDS = np.dtype("<i4")
_LOGPROBS = np.dtype("<f4")
_NATIVE = sys.byteorder == "little"


def ids_from_bytes(data: bytes) -> TokenIds:
    """Little-endian int32 bytes as an array, read-only, without a copy where possible."""
    return np.frombuffer(data, _IDS) if _NATIVE else np.frombuffer(data, _IDS).astype(np.int32)


def logprobs_from_bytes(data: bytes | bytearray) -> LogProbs:
    """Little-endian float32 bytes as an array, without a copy where possible; read-only where `data` is."""
    read = np.frombuffer(data, _LOGPROBS)
    return read if _NATIVE else read.astype(np.float32)
