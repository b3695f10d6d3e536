"""The gateway, side by side with direct calls and with Agent Lightning's: `make bench-gateway`.

Three kinds of case. `256+64` and the like are closed loops over an engine that answers at once: what a
call costs. `N in flight` have N agents whose engine takes a second or ten, their starts spread over that
time: what many waiting calls cost; the rate is counted after the ramp. `1024+256 replayed` are forks of attempts with
forty calls, each answered by the record and committed.
"""

from __future__ import annotations

import argparse
import asyncio
import resource
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import uvloop

from gateway_systems import (
    DIRECT,
    AgentLightning03Gateway,
    AgentLightning10Gateway,
    Engine,
    Lightning,
    System,
)
from harness.load import Connection, Load, LoadError, drive
from harness.metering import Meter
from harness.peers import NoPeer
from harness.results import OURS, Results

_RESULTS = Path(__file__).parent / "results"
_CASES = ("calls", "flight", "held", "replay")
_CLIENTS = (1, 16, 64)
_PEERS = (AgentLightning10Gateway, AgentLightning03Gateway)
_HELD_CALLS = 4000
_FORKS, _FORKED_CALLS = 64, 40
_HELD_SECONDS = 60.0


class Calls(NamedTuple):
    """A closed loop over an engine that answers at once."""

    name: str
    answer_tokens: int
    stream: bool


_SHAPES = (
    Calls("256+64", 64, stream=False),
    Calls("1024+256", 256, stream=False),
    Calls("256+64 streamed", 64, stream=True),
)


_REPLAYED = _SHAPES[1]


@dataclass(frozen=True)
class Flight:
    """Many calls under way."""

    in_flight: int
    engine_seconds: float
    rounds: int
    """Calls that each agent makes one after the other, two of which are the ramp."""

    @property
    def name(self) -> str:
        """As it stands in the results."""
        return f"{self.in_flight} in flight, {self.engine_seconds:g} s"


_FLIGHTS = (Flight(300, 1.0, 10), Flight(1000, 1.0, 10), Flight(4000, 10.0, 5))


def _count(system: System, shape: Calls, scale: float) -> int:
    """Calls of one run: a second of CPU or so, in which the kernel's clock counts 100 ticks."""
    by_system = {OURS: 4000, DIRECT: 4000, AgentLightning10Gateway.name: 400}
    count = by_system.get(system.name, 100)
    return max(64, int(scale * count * (0.5 if shape.answer_tokens > 64 else 1.0)))


@contextmanager
def _cpu(system: System):
    """A function that tells the CPU milliseconds of the system's processes since the block began."""
    with ExitStack() as stack:
        meters = [stack.enter_context(Meter(pid).cpu()) for pid in system.pids]
        yield lambda: sum(one.cpu_ms for one in meters)


async def _closed(system: System, shape: Calls, clients: int, count: int) -> tuple[Load, float]:
    """One closed loop; the load, and the CPU milliseconds per call."""
    left = iter(range(count))

    async def work(connection: Connection, done: Callable[[float], None], one: bytes) -> None:
        for _ in left:
            started = time.perf_counter()
            await connection.send(one)
            done(time.perf_counter() - started)

    requests = [
        system.call(client, shape.answer_tokens, stream=shape.stream) for client in range(clients)
    ]
    scripts = [
        lambda connection, done, one=one: work(connection, done, one)  # pyright: ignore[reportUnknownLambdaType]
        for one in requests
    ]
    with _cpu(system) as spent:
        load = await drive(system.url, scripts)
    return load, spent() / load.operations


async def _calls(systems: Sequence[System], results: Results, rounds: int, scale: float) -> None:
    """Measure every shape by every number of clients; the systems take turns."""
    for system in systems:
        await system.prepare(max(_CLIENTS))
        await _closed(system, _SHAPES[0], 8, 64)  # connections, caches, lazy imports
    cpu: dict[tuple[str, str, int], list[float]] = defaultdict(list)
    p50: dict[tuple[str, str, int], list[float]] = defaultdict(list)
    for _ in range(rounds):
        for shape in _SHAPES:
            for clients in _CLIENTS:
                for system in systems:
                    if shape.stream and system.name not in (OURS, DIRECT):
                        continue  # 1.0 refuses to stream; 0.3 would be measured without its spans
                    count = _count(system, shape, scale)
                    load, cpu_ms = await _closed(system, shape, clients, count)
                    key = (shape.name, system.name, clients)
                    cpu[key].append(cpu_ms)
                    p50[key].append(load.percentile_ms(0.5))
    for (case, name, clients), values in p50.items():
        if name == DIRECT:
            continue
        results.add(case, name, "cpu_ms", cpu[case, name, clients], "ms", clients=clients)
        direct = p50[case, DIRECT, clients]
        added = [own - base for own, base in zip(values, direct, strict=True)]
        results.add(case, name, "added_p50_ms", added, "ms", clients=clients)


class Flown(NamedTuple):
    """What many calls under way came to."""

    per_second: float
    """Rate after the ramp."""
    cpu_ms: float
    """Per call, the ramp included."""
    bytes_per_call: float
    """Growth of resident memory by calls that all wait, per call."""


async def _fly(system: System, flight: Flight, answer_tokens: int) -> Flown:
    """Let `in_flight` agents call one after the other, their starts spread over the engine's time."""
    seconds, agents = flight.engine_seconds, flight.in_flight
    ends: list[float] = []
    requests = [system.call(agent, answer_tokens) for agent in range(agents)]
    meters = [Meter(pid) for pid in system.pids]
    before = sum(one.resident_bytes() for one in meters)

    async def work(agent: int) -> None:
        await asyncio.sleep(seconds * agent / agents)
        connection = await Connection.open(system.url)
        for _ in range(flight.rounds):
            await connection.send(requests[agent])
            ends.append(time.perf_counter())
        connection.close()

    with _cpu(system) as spent:
        started = time.perf_counter()
        flying = asyncio.gather(*(work(agent) for agent in range(agents)))
        await asyncio.sleep(1.9 * seconds)  # all are under way
        waiting = sum(one.resident_bytes() for one in meters) - before
        await flying
    # The ramp is the first two rounds; the last agents end one engine's time after the first.
    first, last = started + 2.0 * seconds, started + flight.rounds * seconds
    counted = sum(first <= one < last for one in ends)
    return Flown(
        counted / (last - first), spent() / len(ends), max(0.0, waiting) / flight.in_flight
    )


async def _flights(folder: Path, results: Results, options: argparse.Namespace) -> None:
    """Measure calls under way, each gateway in processes of its own that nobody used before."""
    for flight in _FLIGHTS:
        rates: dict[str, list[float]] = defaultdict(list)
        flown: dict[str, list[Flown]] = defaultdict(list)
        for number in range(options.rounds):
            for kind in (
                None,
                Lightning,
                *(() if options.no_peers else (AgentLightning10Gateway,)),
            ):
                if kind is AgentLightning10Gateway and flight.in_flight > 300:
                    continue  # it is at a fifth of the ideal with 300
                with ExitStack() as stack:
                    place = _made(folder / f"{flight.in_flight}-{number}-{kind and kind.__name__}")
                    engine = Engine(place, stack, flight.engine_seconds)
                    try:
                        system: System = engine if kind is None else kind(place, stack, engine)
                    except (NoPeer, RuntimeError) as error:
                        results.missing(flight.name, kind.name if kind else DIRECT, str(error))
                        continue
                    await system.prepare(flight.in_flight)
                    one = await _fly(system, flight, 64)
                flown[system.name].append(one)
                rates[system.name].append(one.per_second)
        for name, ones in flown.items():
            if name == DIRECT:
                continue
            shares = [own / base for own, base in zip(rates[name], rates[DIRECT], strict=True)]
            results.add(flight.name, name, "ideal_share", shares, "1", clients=flight.in_flight)
            results.add(
                flight.name,
                name,
                "cpu_ms",
                [one.cpu_ms for one in ones],
                "ms",
                clients=flight.in_flight,
            )
            memory = [one.bytes_per_call / 1e3 for one in ones]
            results.add(flight.name, name, "waiting_call", memory, "kB", clients=flight.in_flight)


async def _held(folder: Path, results: Results, seconds: float) -> None:
    """Let calls wait for a whole weight sync; count those that were not answered well."""
    case = f"{_HELD_CALLS} held for {seconds:g} s"
    with ExitStack() as stack:
        engine = Engine(folder, stack, 0.0)
        system = Lightning(folder, stack, engine)
        await system.prepare(_HELD_CALLS)
        errors = 0

        async def work(agent: int) -> None:
            nonlocal errors
            connection = await Connection.open(system.url)
            try:
                await connection.send(system.call(agent, 64))
            except LoadError:
                errors += 1
            connection.close()

        async with system.control() as control:
            await control.hold("bench", "policy", hold_seconds=seconds + 60.0, drain_seconds=5.0)
            with _cpu(system) as spent:
                calls = asyncio.gather(*(work(agent) for agent in range(_HELD_CALLS)))
                await asyncio.sleep(seconds)
                [status] = await control.status()
                await control.publish("bench", "policy", 1)
                await calls
    results.add(case, OURS, "waiting", [status.waiting], "calls", clients=_HELD_CALLS)
    results.add(case, OURS, "errors", [errors], "calls", clients=_HELD_CALLS)
    results.add(case, OURS, "cpu_ms", [spent() / _HELD_CALLS], "ms", clients=_HELD_CALLS)


async def _replays(folder: Path, results: Results, rounds: int, scale: float) -> None:
    """Have forks ask what their parents had asked; each round has attempts of its own."""
    case = f"{_REPLAYED.name} replayed"
    forks = max(1, int(scale * _FORKS))
    cpu: dict[int, list[float]] = defaultdict(list)
    p50: dict[int, list[float]] = defaultdict(list)
    with ExitStack() as stack:
        engine = Engine(folder, stack, 0.0)
        system = Lightning(folder, stack, engine)
        await system.prepare(1)
        for number in range(rounds + 1):
            for clients in _CLIENTS:
                asked = await system.forks(
                    _FORKED_CALLS, _REPLAYED.answer_tokens, max(forks, clients)
                )
                left = iter(asked)

                async def work(
                    connection: Connection,
                    done: Callable[[float], None],
                    left: Iterator[list[bytes]] = left,
                ) -> None:
                    for one in left:
                        for each in one:
                            started = time.perf_counter()
                            await connection.send(each)
                            done(time.perf_counter() - started)

                with _cpu(system) as spent:
                    load = await drive(system.url, [work] * clients)
                if number:  # the first round warms up
                    cpu[clients].append(spent() / load.operations)
                    p50[clients].append(load.percentile_ms(0.5))
    for clients in _CLIENTS:
        results.add(case, OURS, "cpu_ms", cpu[clients], "ms", clients=clients)
        results.add(case, OURS, "p50_ms", p50[clients], "ms", clients=clients)


async def _measure(options: argparse.Namespace, results: Results) -> None:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-gateway-")))
        if "calls" in options.cases:
            engine = Engine(folder, stack, 0.0)
            systems: list[System] = [engine, Lightning(_made(folder / "ours"), stack, engine)]
            for kind in () if options.no_peers else _PEERS:
                try:
                    systems.append(kind(_made(folder / kind.__name__), stack, engine))
                except (NoPeer, RuntimeError) as error:
                    results.missing("all", kind.name, str(error))
            await _calls(systems, results, options.rounds, options.scale)
    with tempfile.TemporaryDirectory(prefix="bench-gateway-") as name:
        if "flight" in options.cases:
            await _flights(Path(name), results, options)
        if "held" in options.cases:
            await _held(_made(Path(name) / "held"), results, options.held_seconds)
        if "replay" in options.cases:
            await _replays(_made(Path(name) / "replay"), results, options.rounds, options.scale)


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="runs of each case")
    parser.add_argument(
        "--scale", type=float, default=1.0, help="calls of each closed loop, times this"
    )
    parser.add_argument("--cases", nargs="+", choices=_CASES, default=_CASES)
    parser.add_argument("--held-seconds", type=float, default=_HELD_SECONDS, help="the weight sync")
    parser.add_argument("--no-peers", action="store_true", help="measure LightningRL alone")
    parser.add_argument("--results", type=Path, default=_RESULTS, help="folder of the results")
    return parser.parse_args()


def main() -> None:
    """Measure, print, write."""
    options = _options()
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    whole = set(options.cases) == set(_CASES)
    name = "gateway" if whole else "-".join(["gateway", *sorted(options.cases)])
    results = Results(name, options.results)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_measure(options, results))
    results.show()
    print(f"written to {results.write()}")


if __name__ == "__main__":
    main()
