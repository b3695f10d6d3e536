"""The rewards: whether the agent's query answers the question, and whether it is a query at all.

Invariant: they read only the task and the agent's output, never how the agent got there, and they never raise on what a
model may write. A task whose own query fails is broken, and raises.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightningrl_bench_sql.database import rows_of, run
from lightningrl_bench_sql.scoring import prepared, same


def execution_match(task: Mapping[str, Any], output: object, trace: object) -> float:  # noqa: ARG001
    """Return 1.0 if `output` gives the answer of `task["query"]` on the visible file and on all hidden ones, else 0.0.

    `output` may be anything, `None` included; `trace` is part of a reward's contract and not used.

    Raises:
        QueryError: `task["query"]` can't be run.
    """
    wanted, match = prepared(task["query"], task["match"]), task["match"]
    found = prepared(str(output or ""), match)
    for path in (task["database"], *task["hidden"]):
        rows = rows_of(path, found)
        if rows is None or not same(run(path, wanted), rows, match, ordered=task["ordered"]):
            return 0.0
    return 1.0


def readable(task: Mapping[str, Any], output: object, trace: object) -> float:  # noqa: ARG001
    """Return 1.0 if `output` is a query that runs on the visible file, right or wrong, else 0.0.

    With `execution_match` it tells format from accuracy: the mean of `readable`, and the mean of `execution_match` where
    `readable` is 1.
    """
    found = prepared(str(output or ""), task["match"])
    return float(rows_of(task["database"], found) is not None)
