"""What the store keeps: bytes of the file per model call, and memory of the server.

Bytes are the growth of the database file by the calls alone, after a checkpoint, with indices and page
overhead. Memory is the server's after so many events, appended over HTTP.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

from harness.load import closed_loop
from harness.metering import Meter
from harness.results import Results
from store_payloads import Speaker, Spoken
from store_systems import Held, Lightning

_CALLS = 400
_TURNS = 10
_CONVERSATIONS = 40
_BATCH_EVENTS = 100
_CLIENTS = 16


async def size(system: Lightning, results: Results) -> None:
    """The cases `call` (1024 + 256 tokens, one turn) and `turn` (mean of a 10-turn conversation).

    With uniform ids and synthetic text; `call_text` and `turn_text` are of real text.
    """
    calls, talks = range(1000, 1000 + _CALLS), range(5000, 5000 + _CONVERSATIONS)
    cases = {
        "call": [Speaker(seed).synthetic(1, 1024, 256) for seed in calls],
        "turn": [Speaker(seed).synthetic(_TURNS, 200, 256) for seed in talks],
        "call_text": [Speaker(seed).conversation(1, 1024, 256) for seed in calls],
        "turn_text": [Speaker(seed).conversation(_TURNS, 200, 256) for seed in talks],
    }
    for case, conversations in cases.items():
        stored = await _bytes(system, case, conversations)
        results.add(case, system.name, "bytes", [stored], "B/call")


async def _bytes(system: Lightning, run: str, talks: Sequence[Sequence[Spoken]]) -> float:
    """Bytes per call of these conversations, each in an attempt of its own."""
    held = await _claimed(system, run, len(talks))
    before = _file_bytes(system)
    for one, talk in zip(held, talks, strict=True):
        requests = [system.call(one, spoken) for spoken in talk]
        await closed_loop(system.url, requests, 1)
    return (_file_bytes(system) - before) / sum(len(talk) for talk in talks)


def _file_bytes(system: Lightning) -> int:
    """Bytes of the pages in use, those in the write-ahead log included."""
    connection = sqlite3.connect(f"file:{system.path}?mode=ro", uri=True)
    try:
        (pages,) = connection.execute("PRAGMA page_count").fetchone()
        (page_bytes,) = connection.execute("PRAGMA page_size").fetchone()
    finally:
        connection.close()
    return pages * page_bytes


async def memory(system: Lightning, results: Results, counts: tuple[int, int]) -> None:
    """The case `memory`: resident bytes after so many events, and the ratio of the two."""
    meter = Meter(system.pid)
    resident: list[float] = []
    appended = 0
    for count in counts:
        await _append(system, count - appended, run=f"memory {count}")
        appended = count
        resident.append(float(meter.resident_bytes()))
        results.add("memory", system.name, f"resident_{count}", [resident[-1] / 2**20], "MiB")
    results.add("memory", system.name, "ratio", [resident[1] / resident[0]], "")


async def _append(system: Lightning, events: int, run: str) -> None:
    """Append events in batches, a thousand to an attempt."""
    attempts = await _claimed(system, run, max(1, events // 1000))
    for held in attempts:
        requests = [
            system.append([system.event(held) for _ in range(_BATCH_EVENTS)])
            for _ in range(events // len(attempts) // _BATCH_EVENTS)
        ]
        await closed_loop(system.url, requests, _CLIENTS)


async def _claimed(system: Lightning, run: str, count: int) -> list[Held]:
    enqueue = system.request(
        "enqueue",
        rollouts=[system.rollout(run=run, task=f"{run}/{number}") for number in range(count)],
    )
    await closed_loop(system.url, [enqueue], 1)
    claims = await closed_loop(system.url, [system.claim_of(run) for _ in range(count)], _CLIENTS)
    return [system.claimed(answer) for answer in claims.answers]
