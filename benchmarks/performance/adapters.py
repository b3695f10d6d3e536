"""What capture adds to a model call, in CPU time of the agent's process: `make bench-adapters`.

Each framework runs an agent with one tool: two model calls and a tool call a run, against a scripted server in
a process of its own that answers at once. In turns, in one process, the same agent runs

- `direct`: with nothing of ours installed;
- `gateway`: adapter and client patch installed, within a rollout whose calls go to an attempt's URL;
- `recorded`: adapter installed, within a rollout that `lightningrl.record` writes to a file, the writer's
  thread and its commit included.

What is stated is the median over the rounds of the difference to `direct` in the same round.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Generator
from contextlib import AbstractContextManager
from importlib.metadata import version
from pathlib import Path

from adapters_agents import AGENTS, Run
from harness.results import OURS, Results
from lightningrl.capture.adapter import Adapter
from lightningrl.capture.adapters import find_adapters
from lightningrl.capture.client import install_client_patch, uninstall_client_patch
from lightningrl.capture.context import RolloutContext, in_rollout
from lightningrl.capture.sink import BufferSink
from lightningrl.recorder import Recorder, record
from lightningrl.runner.live import rollout
from lightningrl.schema import AttemptId, RolloutId

_RESULTS = Path(__file__).parent / "results"
CALLS_A_RUN = 2
BAR_MS = 0.3
"""What capture may add to a model call whose record is the gateway's. `recorded` also keeps the messages, and
writes them in this process; it has no bar."""

_SERVER = """
import sys
from lightningrl_testkit.lab import script
from lightningrl_testkit.model_server import ModelServer
with ModelServer(script) as server:
    print(server.url, flush=True)
    sys.stdin.read()
"""

Work = Callable[[Run, int], Awaitable[None]]
Case = Callable[[], AbstractContextManager[Work]]
"""Sets up what a case needs, which is not metered, and takes it down."""


@contextlib.contextmanager
def model_server() -> Generator[str]:
    """The URL of a scripted model in another process."""
    command = [sys.executable, "-c", _SERVER]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdout is not None
        yield server.stdout.readline().strip()
        server.communicate()


@contextlib.contextmanager
def direct() -> Generator[Work]:
    """As without us."""

    async def work(run: Run, runs: int) -> None:
        for _ in range(runs):
            await run("use a")

    yield work


@contextlib.contextmanager
def through_gateway(adapter: Adapter, url: str) -> Generator[Work]:
    """Rollouts whose calls are redirected, as in a runner."""

    async def work(run: Run, runs: int) -> None:
        for number in range(runs):
            sink = BufferSink()
            context = RolloutContext(
                RolloutId(f"r-{number}"), AttemptId(f"a-{number}"), url, "key", sink
            )
            with in_rollout(context):
                await run("use a")
            context.close()
            assert context.model_calls == CALLS_A_RUN
            assert len(sink.events) >= 2 * CALLS_A_RUN

    adapter.install()
    install_client_patch()
    yield work
    adapter.uninstall()
    uninstall_client_patch()


@contextlib.contextmanager
def recorded(adapter: Adapter, recorder: Recorder) -> Generator[Work]:
    """Rollouts that are written to a file."""

    async def work(run: Run, runs: int) -> None:
        before = recorder.counts.written
        for _ in range(runs):
            async with rollout():
                await run("use a")
        assert recorder.flush(60.0)
        assert recorder.counts.written == before + runs

    adapter.install()
    yield work
    adapter.uninstall()


async def measure(name: str, url: str, folder: Path, options: argparse.Namespace) -> Results:
    """One framework's rounds."""
    adapter = next(one for one in find_adapters() if one.name == name)
    recorder = record(folder / "traffic.db", install_adapters=False)
    assert recorder is not None
    cases: dict[str, Case] = {
        "direct": direct,
        "gateway": lambda: through_gateway(adapter, url.removesuffix("/v1")),
        "recorded": lambda: recorded(adapter, recorder),
    }
    spent: dict[str, list[float]] = {case: [] for case in cases}
    async with AGENTS[name]() as run:
        for number in range(-1, options.rounds):  # the first round warms up
            order = list(cases)
            for case in order[number % 3 :] + order[: number % 3]:
                with cases[case]() as work:
                    gc.collect()
                    began = time.process_time()
                    await work(run, options.runs)
                    took = time.process_time() - began
                if number >= 0:
                    spent[case].append(1e3 * took / (options.runs * CALLS_A_RUN))
    recorder.close()
    results = Results("adapters", options.results)
    framework = f"{adapter.framework} {version(adapter.framework)}"
    results.add(framework, "direct", "cpu_ms_per_call", spent["direct"], "ms")
    for case in ("gateway", "recorded"):
        added = [
            with_us - without for with_us, without in zip(spent[case], spent["direct"], strict=True)
        ]
        results.add(f"{framework}, {case}", OURS, "added_cpu_ms_per_call", added, "ms")
        print(f"{framework}, {case}: {statistics.median(added):.3f} ms more", file=sys.stderr)
    return results


def main() -> None:
    """Measure, print, write; exit by 1 where a call costs more than the bar."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--runs", type=int, default=50, help="of the agent, per case and round")
    parser.add_argument("--only", choices=sorted(AGENTS), help="one adapter")
    parser.add_argument("--results", type=Path, default=_RESULTS, help="folder of the results")
    options = parser.parse_args()
    os.environ.update(OPENAI_API_KEY="none", OPENAI_AGENTS_DISABLE_TRACING="1")
    os.environ.pop("LIGHTNINGRL_SERVER", None)
    results = Results("adapters", options.results)
    with model_server() as url, tempfile.TemporaryDirectory(prefix="bench-adapters-") as folder:
        os.environ["OPENAI_BASE_URL"] = url
        for name in [options.only] if options.only else sorted(AGENTS):
            results.rows += asyncio.run(measure(name, url, Path(folder), options)).rows
    results.show()
    print(f"written to {results.write()}")
    barred = [row for row in results.rows if row.case.endswith(", gateway")]
    if any(row.value is None or row.value > BAR_MS for row in barred):
        sys.exit(f"a model call through a gateway costs more than {BAR_MS} ms of CPU more")


if __name__ == "__main__":
    main()
