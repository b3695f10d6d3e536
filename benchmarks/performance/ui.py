"""How fast the page of runs answers, and what it costs the run that it shows: `make bench-ui`.

A run of 200,000 rollouts and 2,000,000 events is written into a store (`--keep FOLDER` keeps it for the next time);
then `lightningrl ui` runs in a process of its own, and every screen is asked for as a browser does. After that a
process writes into a store of its own, with and without a page that asks for everything as often as it can.

- `server_ms_p95`, `server_ms_median`: from the request to the last byte, over twenty requests; `server_cpu_ms`: the
  page's CPU time for one, on the average.
- `until_there`: of a screen that compares credit methods on an iteration of 1,920 rollouts, how long they take to be
  computed; each request until then, and for other rollouts of the iteration, is among its `server_ms_p95`.
- A call of 32,000 tokens, and what writing lessons costs: see `ui_tokens.py`.
- `rss`: resident memory of the page's process after all that.
- `idle_cpu`: its share of a core while a page is open that asks for changes every four seconds.
- `writer_cpu_ms`: the writer's CPU time per rollout written, without the page and with it.
- `wal`: the largest the write-ahead log was meanwhile.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator
from contextlib import AbstractContextManager, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import httpx

from harness.metering import Meter
from harness.results import OURS, Results
from lightningrl.schema import (
    AttemptState,
    Claim,
    Event,
    EventId,
    Mode,
    NewRollout,
    StepEndEvent,
    StepId,
    StepKind,
    StepStartEvent,
)
from lightningrl.store import RolloutQuery, Store, open_store
from lightningrl.store.sqlite import SqliteStore
from lightningrl_testkit.records import call, group, reward
from ui_tokens import measure_lesson, measure_long_call

_RESULTS = Path(__file__).parent / "results"
_MEMBERS = 8
_ITERATIONS = 100
_CALLS = 4
_WORDS = "a text of some length, as agents send them. " * 4
_RECIPE = """
name: run
agent: "m:f"
algorithm: {iterations: 100, tasks_per_iteration: 240, group_size: 8}
"""


def events_of(claim: Claim) -> list[Event]:
    """Ten events: four calls that continue one another, two tools, a step's reward and the rollout's."""
    attempt = claim.attempt
    events: list[Event] = []
    messages = [{"role": "user", "content": f"{claim.rollout.spec.task_id}: {_WORDS}"}]
    prompt = list(range(40))
    for turn in range(_CALLS):
        answer = [1000 + turn, 2]
        body = json.dumps({"model": "policy", "messages": messages}).encode()
        events.append(call(attempt.id, f"c{turn}", prompt=prompt, answer=answer, request=body))
        messages += [
            {"role": "assistant", "content": "hello"},
            {"role": "tool", "tool_call_id": f"t{turn}", "content": f"{turn}: {_WORDS}"},
        ]
        prompt += [*answer, *range(20)]
    for turn in range(2):
        at = attempt.started_at + timedelta(seconds=turn)
        step = StepId(f"tool-{turn}")
        ids: dict[str, Any] = {"attempt_id": attempt.id, "at": at, "step_id": step}
        begun = StepStartEvent(id=EventId(f"b{turn}"), kind=StepKind.TOOL, name="search", parent_id=StepId(f"step-c{turn}"), agent=None, inputs={"q": "x"}, **ids)  # fmt: skip
        events += [begun, StepEndEvent(id=EventId(f"e{turn}"), output=_WORDS, **ids)]
    score = float(claim.rollout.spec.member % 2)
    return [
        *events,
        reward(attempt.id, 0.5, name="found", step="tool-0"),
        reward(attempt.id, score),
    ]


async def _play(store: Store, claim: Claim) -> None:
    await store.append(events_of(claim))
    await store.finish(claim.attempt.id, AttemptState.SUCCEEDED)


def _iteration(number: int, rollouts: int) -> list[NewRollout]:
    """Rollouts of an iteration: 96 % of training, in groups of eight, the rest of validation."""
    groups = max(1, rollouts * 96 // (100 * _MEMBERS))
    held_out = rollouts - groups * _MEMBERS
    train = [one for task in range(groups) for one in group(_MEMBERS, task=f"task-{task}", iteration=number)]  # fmt: skip
    val = [one for task in range(held_out) for one in group(1, task=f"val-{task}", iteration=number, mode=Mode.VAL)]  # fmt: skip
    return train + val


async def fill(path: Path, rollouts: int) -> None:
    """Write the rollouts, all ended, and take and commit every iteration but the last."""
    store = SqliteStore.open(path)
    for number in range(1, _ITERATIONS + 1):
        await store.enqueue(_iteration(number, rollouts // _ITERATIONS))
        while claims := await store.claim("worker", limit=1000):
            await asyncio.gather(*(_play(store, claim) for claim in claims))
        if number < _ITERATIONS:
            await store.take("run", number)
            await store.commit("run", number)
    await store.close()


def make_run(folder: Path, rollouts: int) -> None:
    """A run's folder, unless it is there; its store and the metrics of all iterations but the last."""
    if (folder / "recipe.yaml").is_file():
        return
    folder.mkdir(parents=True, exist_ok=True)
    asyncio.run(fill(folder / "store.db", rollouts))
    (folder / "logs").mkdir(exist_ok=True)
    with (folder / "metrics.jsonl").open("w", encoding="utf-8") as file:
        for number in range(_ITERATIONS):
            line = {f"made/metric_{place}": random.random() for place in range(120)}
            line |= {"iteration": number, "val/reward": number / _ITERATIONS, "train/reward": 0.5}
            line |= {"timing/collect_seconds": 3.0, "timing/iteration_seconds": 4.0}
            file.write(json.dumps(line) + "\n")
    (folder / "recipe.yaml").write_text(_RECIPE, encoding="utf-8")


@contextmanager
def page(*targets: object) -> Generator[tuple[str, Meter]]:
    """`lightningrl ui` in a process of its own: its address, and a meter of it."""
    command = [sys.executable, "-m", "lightningrl.cli", "ui", *map(str, targets)]
    process = subprocess.Popen([*command, "--no-browser", "--port", "0"], stdout=subprocess.PIPE, text=True)  # fmt: skip
    assert process.stdout is not None
    try:
        yield process.stdout.readline().split()[2], Meter(process.pid)
    finally:
        process.terminate()
        process.wait()
        process.stdout.close()


async def screens(store_path: Path, iterations: range) -> dict[str, list[str]]:
    """Screen -> addresses of several things that it can show."""
    store = open_store(store_path, read_only=True)
    found: dict[str, list[str]] = {"/": ["/"] * 20, "run": ["run?run=run"] * 20}
    found["compare"] = ["compare?run=run"] * 20
    found["findings"] = ["findings?run=run"] * 20
    found["live"] = ["live?run=run"] * 20
    found["pulse"] = ["pulse?run=run"] * 20
    for number in random.sample(iterations, min(20, len(iterations))):
        found.setdefault("iteration", []).append(f"iteration?run=run&n={number}")
        query = RolloutQuery(run="run", iteration=number, mode=Mode.TRAIN)
        one = random.choice(await store.rollouts(query))
        found.setdefault("group", []).append(f"group?{urlencode({'run': 'run', 'id': one.spec.group_id})}")  # fmt: skip
        for screen in ("rollout", "tokens", "credit"):
            named = urlencode({"run": "run", "id": one.id})
            found.setdefault(screen, []).append(f"{screen}?{named}")
        (attempt,) = await store.attempts([one.id])
        calls = await store.calls(attempt.id)
        place = {"run": "run", "attempt": attempt.id, "id": calls[-1].id}
        found.setdefault("call", []).append(f"call?{urlencode(place)}")
    await store.close()
    return found


def _p95(values: list[float]) -> float:
    return sorted(values)[max(0, -(-95 * len(values) // 100) - 1)]


def measure_screens(results: Results, folder: Path) -> None:
    """Every screen's time, then memory and what an open page costs while nothing happens."""
    asked = asyncio.run(screens(folder / "store.db", range(1, _ITERATIONS + 1)))
    with page(folder) as (url, meter), httpx.Client(base_url=url, timeout=300) as client:
        results.add("at start", OURS, "rss", [meter.resident_bytes() / 2**20], "MiB")
        client.get("/run?run=run").raise_for_status()  # opens the store
        for screen, addresses in asked.items():
            times: list[float] = []
            with meter.cpu() as spent:
                for address in addresses:
                    begun = time.perf_counter()
                    client.get("/" + address.removeprefix("/")).raise_for_status()
                    times.append(1e3 * (time.perf_counter() - begun))
            results.add(screen, OURS, "server_cpu_ms", [spent.cpu_ms / len(times)], "ms")
            results.add(screen, OURS, "server_ms_p95", [_p95(times)], "ms")
            results.add(screen, OURS, "server_ms_median", [statistics.median(times)], "ms")
        results.add("after all", OURS, "rss", [meter.resident_bytes() / 2**20], "MiB")
        with meter.cpu() as spent:
            for _ in range(5):
                client.get("/pulse?run=run")
                time.sleep(4)
        results.add("idle", OURS, "cpu_share", [spent.cpu_ms / 20_000], "of a core")


def measure_beside(results: Results, folder: Path, number: int) -> None:
    """The screen that compares two credit methods: asked until they are there, then for other rollouts."""
    addresses = asyncio.run(_beside(folder / "store.db", number))
    with page(folder) as (url, meter), httpx.Client(base_url=url, timeout=300) as client:
        client.get("/run?run=run").raise_for_status()
        times: list[float] = []
        begun = time.perf_counter()
        while "methods-table" not in _asked(client, addresses[0], times):
            time.sleep(0.5)
        there = time.perf_counter() - begun
        for address in addresses[1:]:
            _asked(client, address, times)
        case = "credit, two methods"
        results.add(case, OURS, "until_there", [there], "s")
        results.add(case, OURS, "server_ms_p95", [_p95(times)], "ms")
        results.add(case, OURS, "server_ms_max", [max(times)], "ms")
        results.add(case, OURS, "rss", [meter.resident_bytes() / 2**20], "MiB")


def _asked(client: httpx.Client, address: str, times: list[float]) -> str:
    """What a page answers; how long it took, in ms, is added to `times`."""
    begun = time.perf_counter()
    text = client.get("/" + address).raise_for_status().text
    times.append(1e3 * (time.perf_counter() - begun))
    return text


async def _beside(store_path: Path, number: int) -> list[str]:
    store = open_store(store_path, read_only=True)
    query = RolloutQuery(run="run", iteration=number, mode=Mode.TRAIN, limit=20)
    found = await store.rollouts(query)
    await store.close()
    asked = ({"run": "run", "id": one.id, "with": "gigpo,step_reward"} for one in found)
    return [f"credit?{urlencode(one)}" for one in asked]


WRITER = """
import asyncio, sys, time
from pathlib import Path
from ui import _iteration, _play
from lightningrl.store.sqlite import SqliteStore

async def write(path, seconds):
    store = SqliteStore.open(path)
    written, number, largest = 0, 0, 0
    end, cpu = time.monotonic() + seconds, time.process_time()
    wal = Path(str(path) + "-wal")
    while time.monotonic() < end:
        number += 1
        await store.enqueue(_iteration(number, 100))
        while claims := await store.claim("worker", limit=10):
            await asyncio.gather(*(_play(store, one) for one in claims))
            written += len(claims)
            largest = max(largest, wal.stat().st_size)
    print(written, 1e3 * (time.process_time() - cpu) / written, largest)
    await store.close()

asyncio.run(write(Path(sys.argv[1]), float(sys.argv[2])))
"""


def measure_store_alone(results: Results, folder: Path) -> None:
    """The screen of a run whose store alone is known: nothing counts its iterations but the store."""
    with page(folder / "store.db") as (url, _), httpx.Client(base_url=url, timeout=300) as client:
        for screen in ("/", "/run?run=run"):
            client.get(screen).raise_for_status()
            times: list[float] = []
            for _ in range(20):
                begun = time.perf_counter()
                client.get(screen).raise_for_status()
                times.append(1e3 * (time.perf_counter() - begun))
            results.add(f"{screen} of a store alone", OURS, "server_ms_p95", [_p95(times)], "ms")


def measure_writer(results: Results, seconds: float, rounds: int) -> None:
    """The writer's CPU time per rollout and its log's size, without and with a page that asks all the time."""
    spent: dict[str, list[float]] = {"without a page": [], "with a page": []}
    logs: dict[str, list[float]] = {case: [] for case in spent}
    for _ in range(rounds):
        for case in spent:
            with tempfile.TemporaryDirectory(prefix="ui-") as name:
                path = Path(name) / "store.db"
                asyncio.run(SqliteStore.open(path).close())
                watched = page(path) if case == "with a page" else None
                cpu, wal = _write(path, seconds, watched)
                spent[case].append(cpu)
                logs[case].append(wal)
    for case, values in spent.items():
        results.add(case, OURS, "writer_cpu_ms", values, "ms per rollout")
        results.add(case, OURS, "wal", logs[case], "MiB")
    ratios = [w / o for w, o in zip(spent["with a page"], spent["without a page"], strict=True)]
    results.add("with a page", OURS, "writer_cpu_ratio", ratios, "times without")


def _write(
    path: Path, seconds: float, watched: AbstractContextManager[tuple[str, Meter]] | None
) -> tuple[float, float]:
    command = [sys.executable, "-c", WRITER, str(path), str(seconds)]
    writer = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parent)
    if watched is not None:
        with watched as (url, _), httpx.Client(base_url=url, timeout=60) as client:
            while writer.poll() is None:
                for address in ("/run?run=run", "/iteration?run=run&n=1", "/findings?run=run"):
                    client.get(address)
                time.sleep(0.5)
    told, _ = writer.communicate()
    _, cpu, wal = told.split()
    return float(cpu), float(wal) / 2**20


def main() -> None:
    """Measure, print, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rollouts", type=int, default=200_000)
    parser.add_argument(
        "--keep", type=Path, help="a folder for the run, used again where it is there"
    )
    parser.add_argument("--seconds", type=float, default=300.0, help="of writing")
    parser.add_argument(
        "--rounds", type=int, default=1, help="of writing, without a page and with it"
    )
    arguments = parser.parse_args()
    results = Results(
        "ui", _RESULTS, {"rollouts": arguments.rollouts, "events": 10 * arguments.rollouts}
    )
    with tempfile.TemporaryDirectory(prefix="ui-") as name:
        folder = arguments.keep or Path(name) / "run"
        make_run(folder, arguments.rollouts)
        results.add(
            "the store", OURS, "size", [(folder / "store.db").stat().st_size / 2**20], "MiB"
        )
        measure_screens(results, folder)
        measure_store_alone(results, folder)
        measure_beside(results, folder, 1)
        measure_long_call(results, Path(name) / "long", page)
        measure_lesson(results, Path(name) / "lesson")
    measure_writer(results, arguments.seconds, arguments.rounds)
    results.show()
    results.write()


if __name__ == "__main__":
    main()
