"""A small run with everything that a page has to show, hostile texts among it, in a real store and a real folder."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec

from lightningrl.schema import (
    Attempt,
    AttemptId,
    AttemptState,
    CallEvent,
    Claim,
    EventId,
    Failure,
    FailureKind,
    Mode,
    RetryPolicy,
    StepEndEvent,
    StepId,
    StepKind,
    StepStartEvent,
)
from lightningrl.store.sqlite import SqliteStore
from lightningrl_testkit.records import call, group, log, reward

HOSTILE = "<script>window.hit = 1</script><img src=x onerror='window.hit = 2'>\"'&{{ 1234*9 }}"
"""What a model, a tool or a user may write."""

RECIPE = """
name: {name}
agent: "m:f"
seed: {seed}
algorithm: {{iterations: {iterations}, tasks_per_iteration: 2, group_size: 2}}
"""


def write_folder(
    folder: Path, name: str = "run", *, seed: int = 0, iterations: int = 2, lines: int = 3
) -> Path:
    """A run's folder with the metrics of `lines` iterations, 0 included, and no store."""
    (folder / "logs").mkdir(parents=True)
    recipe = RECIPE.format(name=name, seed=seed, iterations=iterations)
    (folder / "recipe.yaml").write_text(recipe, encoding="utf-8")
    (folder / "run.json").write_text(json.dumps({"started_at": "2026-01-02T03:04:05+00:00"}))
    (folder / "logs" / "trainer.log").write_text(f"iteration 1: update {HOSTILE}\n")
    written = [metrics_line(number, seed) for number in range(lines)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(one) + "\n" for one in written))
    return folder


def metrics_line(iteration: int, seed: int = 0) -> dict[str, Any]:
    """The metrics of an iteration; rewards rise by a quarter each."""
    if iteration == 0:
        return {"iteration": 0, "val/reward": 0.0, "timing/validate_seconds": 1.0}
    return {
        "iteration": iteration,
        "train/reward": 0.25 * iteration + 0.01 * seed,
        "train/reward_min": 0.0,
        "train/reward_max": 1.0,
        "train/rollouts": 4,
        "train/entropy": 2.0 / iteration,
        "actor/ppo_kl": 0.01,
        "train/part/format": 0.5 * iteration,
        "val/reward": 0.25 * iteration,
        "timing/collect_seconds": 3.0,
        "timing/update_seconds": 1.0,
        "timing/iteration_seconds": 4.0,
    }


def started(
    attempt: Attempt, step: str, seconds: float, kind: StepKind, **more: Any
) -> StepStartEvent:
    fields = {"parent_id": None, "name": kind.value, "agent": None} | more
    return StepStartEvent(
        id=EventId(f"start-{step}"),
        attempt_id=attempt.id,
        at=attempt.started_at + timedelta(seconds=seconds),
        step_id=StepId(step),
        kind=kind,
        **fields,
    )


def ended(attempt: Attempt, step: str, seconds: float, **more: Any) -> StepEndEvent:
    return StepEndEvent(
        id=EventId(f"end-{step}"),
        attempt_id=attempt.id,
        at=attempt.started_at + timedelta(seconds=seconds),
        step_id=StepId(step),
        **more,
    )


def answered(
    attempt: Attempt,
    step: str,
    seconds: float,
    asked: list[Any],
    answer: dict[str, Any],
    **more: Any,
) -> CallEvent:
    """A model call that ended `seconds` after the attempt's start."""
    plain = call(attempt.id, step, request=json.dumps({"messages": asked}).encode())
    choice = msgspec.structs.replace(plain.choices[0], message=json.dumps(answer).encode())
    at = attempt.started_at + timedelta(seconds=seconds)
    return msgspec.structs.replace(plain, step_id=StepId(step), at=at, choices=(choice,), **more)


def conversation(claim: Claim, word: str) -> list[Any]:
    """Two agents and a tool: `planner` asks for a search, `writer` answers with `word`."""
    one = claim.attempt
    system = {"role": "system", "content": "Answer in Ελληνικά. " + HOSTILE}
    asks = {
        "role": "assistant",
        "tool_calls": [{"id": "c1", "function": {"name": "search", "arguments": '{"q": "x"}'}}],
    }
    found = {"role": "tool", "tool_call_id": "c1", "content": HOSTILE}
    return [
        started(one, "plan", 0.1, StepKind.LLM, agent="planner"),
        answered(one, "plan", 1.0, [system], asks, agent="planner"),
        started(one, "tool", 1.1, StepKind.TOOL, parent_id=StepId("plan"), name="search",
                agent="planner", inputs={"q": "x"}, tool_call_id="c1"),
        ended(one, "tool", 1.5, output=HOSTILE),
        reward(one.id, 0.5, name="found", step="tool"),
        answered(one, "write", 3.0, [system, asks, found], {"role": "assistant", "content": word},
                 agent=f"writer {HOSTILE}"),
        log(one.id, "l1", HOSTILE),
    ]  # fmt: skip


async def fill(path: Path, name: str = "run", hostile_task: str = HOSTILE) -> None:
    """Iteration 1: a group that differs, a flat one, one that failed; taken. Iteration 2 is under way."""
    store = SqliteStore.open(path)
    once = RetryPolicy(max_attempts=1, max_infrastructure_failures=0)
    for task in (hostile_task, "flat", "failing"):
        await store.enqueue(group(2, run=name, task=task, retry=once))
    await store.enqueue(group(1, run=name, task="held out", mode=Mode.VAL, variant="greedy"))
    for claim in await store.claim("worker", run=name, limit=7):
        await _play(store, claim)
    await store.take(name, 1)
    await store.commit(name, 1)
    await store.enqueue(group(2, run=name, task="next", iteration=2))
    await store.close()


async def _play(store: SqliteStore, claim: Claim) -> None:
    spec, attempt = claim.rollout.spec, AttemptId(claim.attempt.id)
    if spec.task_id == "failing":
        failure = Failure(FailureKind.AGENT, f"ValueError: {HOSTILE}")
        await store.finish(attempt, AttemptState.FAILED, failure=failure)
        return
    differs = spec.task_id != "flat" and spec.member == 1
    await store.append(conversation(claim, "goodbye" if differs else "good morning"))
    await store.append([reward(attempt, 0.0 if differs or spec.task_id == "flat" else 1.0)])
    await store.finish(attempt, AttemptState.SUCCEEDED, output=HOSTILE)


async def many_agents(path: Path, name: str) -> None:
    """A run with one rollout of 64 agents and a reward for a step that nobody took."""
    store = SqliteStore.open(path)
    await store.enqueue(group(1, run=name, task="日本/#1"))
    (claim,) = await store.claim("worker")
    calls = [
        answered(claim.attempt, f"s% {n}", n / 10 + 0.1, [], {"content": "x"}, agent=f"agent {n}")
        for n in range(64)
    ]
    await store.append([*calls, reward(claim.attempt.id, 1.0, step="ghost", name="r")])
    await store.finish(claim.attempt.id, AttemptState.SUCCEEDED)
    await store.close()
