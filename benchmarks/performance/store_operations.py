"""What one request costs: `enqueue`, `claim`, `append_small`, `append_call`, and appends in batches.

The systems take turns within each round, so that all meet the same noise of the machine.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from harness.load import closed_loop
from harness.metering import Meter
from harness.results import Results
from store_payloads import Speaker
from store_systems import Held, Lightning, System

CLIENTS = (1, 16, 64)

_BATCH_EVENTS = 100

_SPOKEN_CALLS = 20
"""Different calls, which are sent in turn."""

Figure = tuple[float, float]
"""CPU milliseconds per operation, operations per second."""


class Operations:
    """One system's cases. Each feeds the next: what is enqueued is claimed, then appended to."""

    def __init__(self, system: System) -> None:
        self.system = system
        self._meter = Meter(system.pid)
        self._held: list[Held] = []
        self._spoken = [Speaker(seed).call() for seed in range(_SPOKEN_CALLS)]

    async def _send(self, requests: Sequence[bytes], clients: int) -> tuple[Figure, list[bytes]]:
        with self._meter.cpu() as spent:
            load = await closed_loop(self.system.url, requests, clients)
        return (spent.cpu_ms / load.operations, load.per_second), load.answers

    async def enqueue(self, count: int, clients: int) -> Figure:
        """Enqueue rollouts, one a request."""
        requests = [self.system.enqueue() for _ in range(count)]
        figure, answers = await self._send(requests, clients)
        for answer in answers:
            self.system.enqueued(answer)
        return figure

    async def claim(self, count: int, clients: int) -> Figure:
        """Claim what was enqueued, one a request."""
        requests = [self.system.claim() for _ in range(count)]
        figure, answers = await self._send(requests, clients)
        self._held = [self.system.claimed(answer) for answer in answers]
        return figure

    async def append_small(self, count: int, clients: int) -> Figure:
        """Append small events to the claimed attempts in turn, one a request."""
        requests = [self.system.small(self._turn(number)) for number in range(count)]
        return (await self._send(requests, clients))[0]

    async def append_call(self, count: int, clients: int) -> Figure:
        """Append calls of 1024 + 256 tokens, one a request and an attempt."""
        requests = [
            self.system.call(self._turn(number), self._spoken[number % _SPOKEN_CALLS])
            for number in range(count)
        ]
        return (await self._send(requests, clients))[0]

    async def append_batch(self, count: int, clients: int) -> Figure:
        """Append small events, many a request; per event. LightningRL alone has this."""
        assert isinstance(self.system, Lightning)
        requests: list[bytes] = []
        for start in range(0, count, _BATCH_EVENTS):
            held = self._turn(start // _BATCH_EVENTS)
            events = [self.system.event(held) for _ in range(_BATCH_EVENTS)]
            requests.append(self.system.append(events))
        (cpu_ms, per_second), _ = await self._send(requests, clients)
        return cpu_ms / _BATCH_EVENTS, per_second * _BATCH_EVENTS

    def _turn(self, number: int) -> Held:
        return self._held[number % len(self._held)]


async def measure(systems: Sequence[System], results: Results, rounds: int, scale: float) -> None:
    """Measure all cases on all systems, `rounds` times."""
    figures: dict[tuple[str, str, int], list[Figure]] = defaultdict(list)
    every = [Operations(system) for system in systems]
    for _ in range(rounds):
        for clients in CLIENTS:
            for one in every:
                name = one.system.name
                for case, count in _counts(one.system, scale).items():
                    figure = await getattr(one, case)(count, clients)
                    figures[case, name, clients].append(figure)
    for (case, name, clients), pairs in figures.items():
        results.add(case, name, "cpu_ms", [one for one, _ in pairs], "ms", clients=clients)
        results.add(case, name, "per_second", [one for _, one in pairs], "1/s", clients=clients)


def _counts(system: System, scale: float) -> dict[str, int]:
    """Case -> operations: about a second of the server's CPU, in which its clock counts 100 ticks."""
    if isinstance(system, Lightning):
        small, calls, batched = 8000, 4000, 40_000
    else:
        small, calls, batched = 1500, 400, 0
    counts = dict.fromkeys(("enqueue", "claim", "append_small"), small) | {"append_call": calls}
    if batched:
        counts["append_batch"] = batched
    return {case: max(64, int(count * scale)) for case, count in counts.items()}
