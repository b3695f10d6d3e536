"""Groups, tasks and statistics of a run, each read in one transaction."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

from lightningrl.schema import AttemptState, GroupId, Mode, RolloutState
from lightningrl.store import rows
from lightningrl.store.records import GroupQuery, GroupSummary, RunStatistics, Spread, TaskSummary
from lightningrl.store.session import Session


def groups(session: Session, query: GroupQuery) -> list[GroupSummary]:
    """See `Store.groups`."""
    return [
        GroupSummary(place, GroupId(group_id), Mode(mode), *counts)
        for place, group_id, mode, *counts in session.rows("groups", **_values(query))
    ]


def tasks(session: Session, query: GroupQuery) -> list[TaskSummary]:
    """See `Store.tasks`."""
    return [
        TaskSummary(place, task_id, rows.spec(spec).task, *counts)
        for place, task_id, *counts, spec in session.rows("tasks", **_values(query))
    ]


def _values(query: GroupQuery) -> dict[str, Any]:
    return {
        "run": query.run,
        "mode": query.mode,
        "iteration": query.iteration,
        "task_id": query.task_id,
        "complete": None if query.complete is None else int(query.complete),
        "after": query.after,
        "limit": query.limit,
    }


def statistics(
    session: Session, run: str, mode: Mode | None, window_us: int, now_us: int
) -> RunStatistics:
    """See `Store.statistics`."""
    rollouts = session.rows("rollouts_in_short", run=run, mode=mode)
    attempts = session.rows("attempts_in_short", run=run, mode=mode)
    events = session.rows("events_in_short", run=run, mode=mode)
    ends = [ended_us for _, _, ended_us in rollouts if ended_us is not None]
    starts = [started_us for _, _, _, started_us, _, _ in attempts]
    return RunStatistics(
        rollouts=dict(Counter(state for state, _, _ in rollouts)),
        attempts=dict(Counter(attempt[0] for attempt in attempts)),
        failures=dict(Counter(attempt[1] for attempt in attempts if attempt[1] is not None)),
        events={kind: count for kind, count, _, _ in events},
        prompt_tokens=sum(int(tokens or 0) for _, _, tokens, _ in events),
        completion_tokens=sum(int(tokens or 0) for _, _, _, tokens in events),
        attempt_seconds=spread(
            [
                (ended_us - started_us) / 1e6
                for state, _, _, started_us, ended_us, _ in attempts
                if state == AttemptState.SUCCEEDED
            ]
        ),
        queue_seconds=spread(
            [
                (started_us - created_us) / 1e6
                for _, _, number, started_us, _, created_us in attempts
                if number == 1
            ]
        ),
        reward=spread(
            [
                reward
                for state, reward, _ in rollouts
                if state == RolloutState.SUCCEEDED and reward is not None
            ]
        ),
        ended_per_second=_rate(starts, ends),
        ended_lately=sum(ended_us > now_us - window_us for ended_us in ends),
    )


def _rate(starts: Sequence[int], ends: Sequence[int]) -> float | None:
    if not starts or not ends or max(ends) <= min(starts):
        return None
    return len(ends) * 1e6 / (max(ends) - min(starts))


def spread(sample: Sequence[float]) -> Spread | None:
    """The sample in five numbers, by nearest rank; `None` where it is empty."""
    if not sample:
        return None
    ordered = sorted(sample)

    def ranked(share: float) -> float:
        return ordered[max(0, math.ceil(share * len(ordered)) - 1)]

    return Spread(
        count=len(ordered),
        mean=math.fsum(ordered) / len(ordered),
        least=ordered[0],
        median=ranked(0.5),
        p90=ranked(0.9),
        most=ordered[-1],
    )
