"""The LightningStore over HTTP, side by side with Agent Lightning's stores: `make bench-store`.

Each system's server is a process of its own on loopback; CPU is that process's user and system time.
LightningRL runs as `lightningrl serve` does by default: durable, with a key, ack after commit.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
from contextlib import ExitStack
from pathlib import Path

import uvloop

import store_cycle
import store_operations
import store_size
from harness.peers import NoPeer
from harness.results import Results
from store_systems import PEERS, Lightning, System

_RESULTS = Path(__file__).parent / "results"

_CASES = ("operations", "cycle", "scenarios", "size")
_MEMORY_EVENTS = (100_000, 1_000_000)


async def _measure(options: argparse.Namespace, results: Results) -> None:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-store-")))
        ours = Lightning(_made(folder / "ours"), stack)
        systems: list[System] = [ours]
        if not options.no_peers:
            systems += _peers(folder, stack, results)
        rounds, scale = options.rounds, options.scale
        if "size" in options.cases:
            await store_size.size(ours, results)
        if "operations" in options.cases:
            await store_operations.measure(systems, results, rounds, scale)
        if "cycle" in options.cases:
            await store_cycle.cycle(ours, results, rounds, scale)
        if "scenarios" in options.cases:
            await store_cycle.scenarios(systems, results, rounds, scale)
    if options.long:
        with ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-store-")))
            await store_size.memory(Lightning(folder, stack), results, _MEMORY_EVENTS)


def _peers(folder: Path, stack: ExitStack, results: Results) -> list[System]:
    found: list[System] = []
    for kind in PEERS:
        try:
            found.append(kind(_made(folder / kind.name.replace(" ", "-")), stack))
        except (NoPeer, RuntimeError) as error:
            results.missing("all", kind.name, str(error))
    return found


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="runs of each case")
    parser.add_argument(
        "--scale", type=float, default=1.0, help="operations of each run, times this"
    )
    parser.add_argument("--cases", nargs="+", choices=_CASES, default=_CASES)
    parser.add_argument("--no-peers", action="store_true", help="measure LightningRL alone")
    parser.add_argument("--long", action="store_true", help="measure memory too: a million events")
    parser.add_argument("--results", type=Path, default=_RESULTS, help="folder of the results")
    return parser.parse_args()


def main() -> None:
    """Measure, print, write."""
    options = _options()
    results = Results("store", options.results)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_measure(options, results))
    results.show()
    print(f"written to {results.write()}")


if __name__ == "__main__":
    main()
