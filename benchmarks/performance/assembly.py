"""From stored events to packed training rows: `make bench-assembly`.

1,000 rollouts of ten turns: a first prompt of 256 tokens, then 40 more before every further turn, 64 sampled
tokens a turn. In `linear` each prompt continues the one before, so a rollout is one row; in `branchy` nothing
continues, so each call is one. No adapter steps, credit excluded. CPU is this process's user and system time. The
same calls go through Agent Lightning's trainer in a process of its own (`peer_assembly.py`).
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import numpy as np

from harness.peers import NoPeer, Peer
from harness.results import OURS, Results
from lightningrl.experience.trajectory import Row, merge, pack
from lightningrl.schema import (
    AttemptId,
    AttemptState,
    CallEvent,
    CallStatus,
    Choice,
    Event,
    EventId,
    Mode,
    NewRollout,
    RewardEvent,
    StepId,
    TakenGroup,
    group_id,
    rollout_id,
)
from lightningrl.store import open_store
from lightningrl.store.base import Store
from lightningrl.traces import read_traces

_RESULTS = Path(__file__).parent / "results"
TURNS = 10
GROUP = 8
_FIRST, _FURTHER, _SAMPLED = 256, 40, 64
_AT = datetime(2026, 1, 1, tzinfo=UTC)
_CASES = ("linear", "branchy")
_PEER = Peer("Agent Lightning 1.0.2", "agentlightning==1.0.2", any_python=True)


def rollout_calls(case: str, attempt: AttemptId, rng: np.random.Generator) -> list[CallEvent]:
    """One rollout's calls."""
    messages = [{"role": "user", "content": f"question {rng.integers(10**6)} " + "word " * 60}]
    prompt = _ids(rng, _FIRST)
    calls: list[CallEvent] = []
    for turn in range(TURNS):
        answer = {"role": "assistant", "content": f"answer {rng.integers(10**6)} " + "text " * 20}
        sampled = _ids(rng, _SAMPLED)
        calls.append(_call(attempt, turn, messages, prompt, sampled, answer))
        news = {"role": "user", "content": f"news {rng.integers(10**6)} " + "fact " * 12}
        messages = [*messages, answer, news]
        length = _FIRST + (turn + 1) * (_SAMPLED + _FURTHER)
        grown = [prompt, sampled, _ids(rng, _FURTHER)]
        prompt = np.concatenate(grown) if case == "linear" else _ids(rng, length)
    return calls


def _ids(rng: np.random.Generator, count: int) -> np.ndarray:
    return rng.integers(1_000, 150_000, count, dtype=np.int32)


def _call(
    attempt: AttemptId,
    turn: int,
    messages: Sequence[dict[str, str]],
    prompt: np.ndarray,
    sampled: np.ndarray,
    answer: dict[str, str],
) -> CallEvent:
    logprobs = -np.linspace(0.01, 3.0, len(sampled), dtype=np.float32)
    return CallEvent(
        id=EventId(f"call-{turn}"),
        attempt_id=attempt,
        at=_AT,
        step_id=StepId(f"step-{turn}"),
        agent=None,
        policy="policy",
        model="policy",
        endpoint="http://127.0.0.1:8000/v1",
        version_start=0,
        version_end=0,
        request=msgspec.json.encode({"model": "policy", "messages": messages}),
        sampling=None,
        prompt_ids=prompt.tobytes(),
        choices=(
            Choice(
                index=0,
                message=msgspec.json.encode(answer),
                finish_reason="stop",
                token_ids=sampled.tobytes(),
                logprobs=logprobs.tobytes(),
            ),
        ),
        prompt_tokens=len(prompt),
        completion_tokens=len(sampled),
        latency_ms=20.0,
        held_ms=0.0,
        upstream_retries=0,
        status=CallStatus.DELIVERED,
        http_status=200,
        error=None,
    )


async def fill(path: Path, case: str, rollouts: int) -> None:
    """A store with `rollouts` finished rollouts, written as runners and gateway write it."""
    store = open_store(path)
    rng = np.random.default_rng(0)
    specs: list[NewRollout] = []
    for number in range(rollouts):
        group = group_id("run", Mode.TRAIN, 1, f"task-{number // GROUP}")
        member = number % GROUP
        specs.append(
            NewRollout(
                id=rollout_id(group, member),
                run="run",
                mode=Mode.TRAIN,
                iteration=1,
                task_id=f"task-{number // GROUP}",
                group_id=group,
                member=member,
                task={},
            )
        )
    await store.enqueue(specs)
    claims = await store.claim("worker", limit=rollouts, lease_seconds=3600)
    for claim in claims:
        attempt = claim.attempt.id
        events: list[Event] = [*rollout_calls(case, attempt, rng)]
        events.append(
            RewardEvent(
                id=EventId("reward"), attempt_id=attempt, at=_AT, value=float(rng.integers(2))
            )
        )
        await store.append(events)
        await store.finish(attempt, AttemptState.SUCCEEDED)
    await store.take("run", 1)
    await store.close()


async def rows_of(store: Store, taken: Sequence[TakenGroup]) -> list[Row]:
    """What the trainer does between taking and packing, credit aside."""
    groups = await read_traces(store, taken)
    return [
        row for group in groups for trace in group.traces for row in merge(trace.transitions).rows
    ]


async def measure(case: str, rollouts: int, rounds: int, results: Results) -> None:
    """Time one case."""
    with tempfile.TemporaryDirectory(prefix="bench-assembly-") as folder:
        path = Path(folder) / "store.db"
        await fill(path, case, rollouts)
        store = open_store(path)
        taken = await store.take("run", 1)
        rows = 0
        cpu: list[float] = []
        wall: list[float] = []
        for _ in range(rounds):
            gc.collect()
            began, began_cpu = time.perf_counter(), time.process_time()
            packed = pack(await rows_of(store, taken))
            per_10k = 10_000 / (rollouts * TURNS)
            cpu.append((time.process_time() - began_cpu) * per_10k)
            wall.append((time.perf_counter() - began) * per_10k)
            rows = len(packed.lengths)
            trained = rollouts * TURNS * _SAMPLED
            assert int(packed.mask.sum()) == trained, "every sampled token stands in one row"
        await store.close()
    results.add(case, OURS, "cpu_s_per_10k_calls", cpu, "s")
    results.add(case, OURS, "wall_s_per_10k_calls", wall, "s")
    results.add(case, OURS, "rows", [float(rows)], "rows")


def measure_peer(rollouts: int, rounds: int, results: Results) -> None:
    """Time the peer on the same calls, or say why it can't be."""
    try:
        environment = _PEER.environment()
    except NoPeer as error:
        for case in _CASES:
            results.missing(case, _PEER.name, str(error))
        return
    (packages,) = environment.glob("lib/python3*/site-packages")
    done = subprocess.run(
        [
            sys.executable,
            str(Path(__file__).with_name("peer_assembly.py")),
            *("--packages", str(packages), "--rollouts", str(rollouts), "--rounds", str(rounds)),
            *("--shape", *map(str, (TURNS, _FIRST, _FURTHER, _SAMPLED))),
        ],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    found: dict[str, list[float]] = json.loads(done.stdout.splitlines()[-1])
    per_10k = 10_000 / (rollouts * TURNS)
    for case, cpu in found.items():
        results.add(case, _PEER.name, "cpu_s_per_10k_calls", [one * per_10k for one in cpu], "s")


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rollouts", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--no-peers", action="store_true", help="measure LightningRL alone")
    parser.add_argument("--results", type=Path, default=_RESULTS, help="folder of the results")
    options = parser.parse_args()
    results = Results("assembly", options.results)
    for case in _CASES:
        asyncio.run(measure(case, options.rollouts, options.rounds, results))
    if not options.no_peers:
        measure_peer(options.rollouts, min(options.rounds, 3), results)
    results.show()
    print(f"written to {results.write()}")


if __name__ == "__main__":
    main()
