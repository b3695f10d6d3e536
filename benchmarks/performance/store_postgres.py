"""The LightningStore over HTTP on PostgreSQL: `make bench-store-postgres`.

One `lightningrl serve` on a PostgreSQL of its own on the same machine, which syncs every commit to disk. CPU
is the server's process and, apart from it, all of the database's processes.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from pathlib import Path

import uvloop

from harness.metering import Meter
from harness.results import OURS, Results
from lightningrl_testkit.postgres import running_postgres
from store_operations import CLIENTS, Operations
from store_systems import Lightning

_RESULTS = Path(__file__).parent / "results"
_OPERATIONS = 2000
"""Of one run."""

_WARM_UP = 64


async def _measure(options: argparse.Namespace, results: Results) -> None:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-store-")))
        database = stack.enter_context(running_postgres(fsync="on", shared_buffers="256MB"))
        operations = Operations(Lightning(folder, stack, database.url))
        meter = Meter(database.pid)
        cases: dict[str, Callable[[int, int], Awaitable[tuple[float, float]]]] = {
            "enqueue": operations.enqueue,
            "claim": operations.claim,
            "append_small": operations.append_small,
            "append_call": operations.append_call,
        }
        for case in cases.values():
            await case(_WARM_UP, 16)
        count = int(_OPERATIONS * options.scale)
        for clients in CLIENTS:
            figures: dict[str, list[tuple[float, float, float]]] = {name: [] for name in cases}
            for _ in range(options.rounds):
                for name, case in cases.items():
                    with meter.cpu() as spent:
                        cpu_ms, per_second = await case(count, clients)
                    figures[name].append((cpu_ms, spent.cpu_ms / count, per_second))
            for name, found in figures.items():
                server, below, rates = zip(*found, strict=True)
                results.add(name, OURS, "cpu_ms", server, "ms", clients=clients)
                results.add(name, OURS, "database_cpu_ms", below, "ms", clients=clients)
                results.add(name, OURS, "per_second", rates, "1/s", clients=clients)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="runs of each case")
    parser.add_argument(
        "--scale", type=float, default=1.0, help="operations of each run, times this"
    )
    parser.add_argument("--results", type=Path, default=_RESULTS, help="folder of the results")
    return parser.parse_args()


def main() -> None:
    """Measure, print, write."""
    options = _options()
    results = Results("store_postgres", options.results)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_measure(options, results))
    results.show()
    print(f"written to {results.write()}")


if __name__ == "__main__":
    main()
