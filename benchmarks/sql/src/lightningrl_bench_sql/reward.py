"""The reward: 1 if the agent's query answers the question, else 0; and whether it is a query at all.

Invariant: it reads only the task and the agent's output, never how the agent got there, and never raises on what a model may
write. A task whose own query fails is broken, and raises.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightningrl_bench_sql.database import rows_of, run
from lightningrl_bench_sql.scoring import prepared, same


def told_apart(task: Mapping[str, Any], output: object, trace: object) -> dict[str, float]:
    """Return `execution_match` as "final", with "format" (does it run at all) and, if so, "accuracy" beside it.

    Raises:
        QueryError: `task["query"]` can't be run.
    """
    final = execution_match(task, output, trace)
    runs = rows_of(task["database"], _prepared(task, output)) is not None
    return {"final": final, "format": float(runs), **({"accuracy": final} if runs else {})}


def execution_match(task: Mapping[str, Any], output: object, trace: object) -> float:  # noqa: ARG001
    """Return 1.0 if `output` gives the answer of `task["query"]` on the visible file and on all hidden ones, else 0.0.

    `output` may be anything, `None` included; `trace` is part of a reward's contract and not used.

    Raises:
        QueryError: `task["query"]` can't be run.
    """
    wanted, found, match = _prepared(task, task["query"]), _prepared(task, output), task["match"]
    for path in (task["database"], *task["hidden"]):
        rows = rows_of(path, found)
        if rows is None or not same(run(path, wanted), rows, match, ordered=task["ordered"]):
            return 0.0
    return 1.0


def _prepared(task: Mapping[str, Any], output: object) -> str:
    return prepared(str(output or ""), task["match"])
