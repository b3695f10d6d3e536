"""zstd, where it pays: short blobs stay as they are, and each is told apart by its first bytes.

A msgpack map or array never starts with zstd's magic number (its first byte, 0x28, is the integer
40), so a blob needs no flag of its own.
"""

from __future__ import annotations

import sys
import threading

import zstandard

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

MAGIC = b"\x28\xb5\x2f\xfd"

WORTH_BYTES = 400
"""Below this zstd saves less than its call costs (research/speed.md, pitfall 7)."""


class Compressor:
    """One compression context, used again and again (6 instead of 15 microseconds a blob).

    Not safe for use by two threads at once.
    """

    def __init__(self) -> None:
        self._context = zstd.ZstdCompressor(level=1)

    def pack(self, blob: bytes) -> bytes:
        """`blob`, compressed where it is long enough."""
        if len(blob) <= WORTH_BYTES:
            return blob
        return self._context.compress(blob, mode=zstd.ZstdCompressor.FLUSH_FRAME)


class _Contexts(threading.local):
    """A decompression context per thread, used again and again.

    The standard library makes one per frame, and needs 12.6 microseconds for a call of 1.4 KB where `zstandard`
    needs 4.5 (docs/decisions/0050-zstandard-reads-blobs.md). What comes over HTTP stays with the standard library, as aiohttp's own does.
    """

    def __init__(self) -> None:
        self.context = zstandard.ZstdDecompressor()


_contexts = _Contexts()


class Damaged(ValueError):
    """A blob begins as compressed and can't be decompressed."""


def unpack(blob: bytes) -> bytes:
    """What `Compressor.pack` was given.

    Raises:
        Damaged: it is no whole zstd frame.
    """
    if not blob.startswith(MAGIC):
        return blob
    try:
        return _contexts.context.decompress(blob)
    except zstandard.ZstdError as error:
        raise Damaged(f"a blob can't be decompressed: {error}") from error


class TooLong(ValueError):
    """More comes out than is allowed."""


def unpack_at_most(blob: bytes, limit: int) -> bytes:
    """Decompress data from outside.

    Raises:
        TooLong: more than `limit` bytes come out.
        ValueError: it is no whole zstd frame.
    """
    context = zstd.ZstdDecompressor()
    try:
        plain = context.decompress(blob, max_length=limit + 1)
    except zstd.ZstdError as error:
        raise ValueError(f"the body is not zstd: {error}") from error
    if len(plain) > limit:
        raise TooLong(f"the body is longer than {limit} bytes when decompressed")
    if not context.eof or context.unused_data:
        raise ValueError("the body is not one whole zstd frame")
    return plain
