"""How long `lightningrl doctor` takes on a large run: `make bench-doctor`.

A run of many finished rollouts, each a conversation of a few calls, is written into a store of its own; then the
command is run on it in a process of its own, from the interpreter's start to its end.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from harness.results import OURS, Results
from lightningrl.schema import AttemptState, CallEvent, Claim, Event
from lightningrl.store.sqlite import SqliteStore
from lightningrl_testkit.records import call, group, reward

_RESULTS = Path(__file__).parent / "results"
_BATCH = 1000
_TURNS = 4
_GROUP = 8
_WORDS = "a text of some length, as agents send them. " * 8
"""Of one message: about 350 bytes."""


def conversation(claim: Claim) -> list[CallEvent]:
    """The calls of one rollout, each of which continues the one before."""
    events: list[CallEvent] = []
    messages = [{"role": "user", "content": f"{claim.rollout.spec.task_id}: {_WORDS}"}]
    prompt = list(range(80))
    for turn in range(_TURNS):
        answer = [1000 + turn, 2]
        body = json.dumps({"model": "policy", "messages": messages}).encode()
        events.append(
            call(claim.attempt.id, f"c{turn}", prompt=prompt, answer=answer, request=body)
        )
        messages += [
            {"role": "assistant", "content": "hello"},
            {"role": "user", "content": f"{turn}: {_WORDS}"},
        ]
        prompt += [*answer, *range(80)]
    return events


async def fill(store: SqliteStore, rollouts: int) -> None:
    """Write finished rollouts."""
    for start in range(0, rollouts, _BATCH):
        tasks = [f"task-{start + place}" for place in range(0, _BATCH, _GROUP)]
        await store.enqueue([one for task in tasks for one in group(_GROUP, task=task)])
        claims = await store.claim("worker", limit=_BATCH)
        await asyncio.gather(*(_finish(store, claim) for claim in claims))


async def _finish(store: SqliteStore, claim: Claim) -> None:
    score = float(claim.rollout.spec.member % 2)
    events: list[Event] = [*conversation(claim), reward(claim.attempt.id, score)]
    await store.append(events)
    await store.finish(claim.attempt.id, AttemptState.SUCCEEDED)


async def make_run(folder: Path, rollouts: int) -> None:
    """A run's folder."""
    (folder / "recipe.yaml").write_text('name: run\nagent: "m:f"\n', encoding="utf-8")
    store = SqliteStore.open(folder / "store.db")
    try:
        await fill(store, rollouts)
    finally:
        await store.close()


def examine(folder: Path) -> tuple[float, float]:
    """Wall and CPU seconds of the command."""
    command = [sys.executable, "-m", "lightningrl.cli", "doctor", str(folder), "--json"]
    before, begun = _cpu_seconds(), time.monotonic()
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    seconds = time.monotonic() - begun
    if json.loads(done.stdout) != {"run": []}:
        raise SystemExit(f"doctor found something in a run in order: {done.stdout}")
    return seconds, _cpu_seconds() - before


def _cpu_seconds() -> float:
    """Of all child processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> None:
    """Measure, print, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rollouts", type=int, nargs="+", default=[1_000, 100_000])
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    results = Results("doctor", _RESULTS, {"turns": _TURNS, "group": _GROUP})
    for rollouts in arguments.rollouts:
        with tempfile.TemporaryDirectory(prefix="doctor-") as name:
            folder = Path(name)
            asyncio.run(make_run(folder, rollouts))
            timed = [examine(folder) for _ in range(arguments.rounds)]
            case = f"{rollouts} rollouts"
            results.add(case, OURS, "seconds", [wall for wall, _ in timed], "s")
            results.add(case, OURS, "cpu_seconds", [cpu for _, cpu in timed], "s")
            size = (folder / "store.db").stat().st_size / 2**20
            results.add(case, OURS, "store", [size], "MiB")
    results.show()
    results.write()


if __name__ == "__main__":
    main()
