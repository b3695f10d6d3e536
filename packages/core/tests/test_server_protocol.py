"""An answer's head and body leave in one write, in order, and before the connection is closed."""

from __future__ import annotations

import asyncio
from typing import Any

from lightningrl.server.protocol import JoinedWrites


class Wire(asyncio.Transport):
    """A transport that notes what is done with it."""

    def __init__(self) -> None:
        super().__init__()
        self.done: list[bytes] = []

    def write(self, data: Any) -> None:
        self.done.append(bytes(data))

    def close(self) -> None:
        self.done.append(b"closed")

    def is_closing(self) -> bool:
        return b"closed" in self.done


async def test_writes_of_one_tick_are_one() -> None:
    wire = Wire()
    joined = JoinedWrites(wire, asyncio.get_running_loop())
    joined.write(b"head ")
    joined.write(b"body")
    assert wire.done == []
    await asyncio.sleep(0)
    joined.write(b"next")
    await asyncio.sleep(0)
    assert wire.done == [b"head body", b"next"]


async def test_what_was_written_is_sent_before_the_end() -> None:
    wire = Wire()
    joined = JoinedWrites(wire, asyncio.get_running_loop())
    joined.write(b"last")
    joined.close()
    await asyncio.sleep(0)
    assert wire.done == [b"last", b"closed"]
    assert joined.is_closing()
