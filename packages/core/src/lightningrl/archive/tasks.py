"""Recorded traffic as a file of tasks: what to train on, and with its rollouts what to evaluate by.

Invariant: one line a task, in the order in which they were enqueued first; what the store holds is read, and
nothing is made up where it holds nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from lightningrl.archive import whole_file
from lightningrl.conversation.recorded import whole_requests
from lightningrl.experience.transition import Transition
from lightningrl.schema import StepKind
from lightningrl.store.base import GroupQuery, RolloutQuery, Store
from lightningrl.traces import AttemptRecord, read_attempts

ROLLOUTS = "rollouts"
"""Key of a line under which the task's rollouts are."""


async def export_tasks(store: Store, run: str, path: Path, *, with_rollouts: bool = False) -> int:
    """Write a run's tasks, one JSON object a line with its task id as `id`; return how many.

    A task that several rollouts ran on comes once; so recorded traffic becomes a recipe's data.

    Args:
        store: read only.
        run: whose tasks.
        path: appears when it is whole, in the place of a former one.
        with_rollouts: add what became of each task, under `rollouts`: of each rollout `id`, `state`,
            `reward`, `output`, and `calls`, each with `agent`, `model`, `request`, `response`, `error`. Of a
            call through a gateway, request and response are those of the wire; else what the agent's
            framework said, with `messages` whole. Of several attempts the last counts.
    """
    cursor = count = 0
    with whole_file(path) as partial, partial.open("wb") as file:
        while page := await store.tasks(GroupQuery(run=run, after=cursor, limit=100)):
            for one in page:
                line = {**one.task, "id": one.task_id}
                if with_rollouts:
                    line[ROLLOUTS] = await _rollouts(store, run, one.task_id)
                file.write(msgspec.json.encode(line) + b"\n")
            cursor, count = page[-1].cursor, count + len(page)
    return count


async def _rollouts(store: Store, run: str, task_id: str) -> list[dict[str, Any]]:
    rollouts = await store.rollouts(RolloutQuery(run=run, task_id=task_id))
    return [_rollout(records[-1]) for records in await read_attempts(store, rollouts) if records]


def _rollout(record: AttemptRecord) -> dict[str, Any]:
    asked = [one for one in record.transitions if one.kind is StepKind.LLM]
    requests = whole_requests({one.step_id: one.inputs for one in asked})
    return {
        "id": record.rollout.id,
        "state": record.rollout.state,
        "reward": record.rollout.reward,
        "output": record.attempt.output,
        "calls": [_call(one, requests[one.step_id]) for one in asked],
    }


def _call(step: Transition, request: Any) -> dict[str, Any]:
    call, choice = step.call, step.choice
    if call is None:
        answer = {"model": step.name, "request": request, "response": step.output}
    else:
        answer = {
            "model": call.model,
            "request": msgspec.Raw(call.request),
            "response": None if choice is None else msgspec.Raw(choice.message),
        }
    return {"agent": step.agent, **answer, "error": step.error}
