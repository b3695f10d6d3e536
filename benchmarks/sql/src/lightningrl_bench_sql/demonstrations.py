"""Demonstrations: what each of the three roles answers to prompts as the agent sends them.

Half of what the checker is shown is wrong, so that it learns to tell; all that the rewriter is shown is, some of it for a
misread name, so that it learns to mend. Beyond that, writer and rewriter slip themselves in the share `slips` of their
answers: then they are taught wrong queries, and reinforcement learning has something to find out. A rewriter's slip is
another mistake than the one that it was shown: a small model that is taught to repeat repeats most of what it sees.
Where `slips` is 0, every answer is right.

Invariant: `demonstrations` is a pure function of its arguments, about questions and databases of the training split alone.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lightningrl_bench_sql.database import QueryError, cut, run, show
from lightningrl_bench_sql.mistakes import misreadings, mistakes
from lightningrl_bench_sql.prompts import Message, to_checker, to_rewriter, to_writer
from lightningrl_bench_sql.questions import Question
from lightningrl_bench_sql.tasks import LEVELS, draw

WRONG_SHARE = 0.5
"""How often the checker is shown a wrong query."""
MISREAD_SHARE = 0.3
"""How often a wrong query that the writer was not taught holds a misread name."""


def demonstrations(
    count: int,
    seed: int,
    slips: float = 0.2,
    levels: Sequence[int] = LEVELS,
    folder: str | Path | None = None,
) -> list[dict[str, Any]]:
    """Return dialogues for `count` tasks, one of each role, as `policies.NAME.warm_start` reads them.

    Args:
        count: Tasks.
        seed: Of the tasks, what their databases hold, and the slips.
        slips: Share of the writer's and the rewriter's answers that are wrong, from 0 to 1.
        levels: Which kinds of questions.
        folder: As in `generate`.

    Raises:
        ValueError: `slips` is no share, or as `generate` raises it.
    """
    if not 0 <= slips <= 1:
        raise ValueError(f"slips must be from 0 to 1, got {slips}")
    rng = random.Random(f"demonstrations/{seed}")
    return [
        dialogue
        for task, question in draw("train", count, seed, levels, folder)
        for dialogue in _dialogues(task, question, slips, rng)
    ]


def _dialogues(
    task: dict[str, Any], question: Question, slips: float, rng: random.Random
) -> Iterator[dict[str, Any]]:
    """Yield what the writer, the checker and the rewriter are shown of one task."""
    schema, asked, right = task["schema"], task["question"], task["query"]
    made = [(query.sql(), told) for query, told in mistakes(question.query)]
    wrong, told = rng.choice(made)
    slipped = rng.random() < slips
    yield _row(task, "writer", to_writer(schema, asked), wrong if slipped else right, slip=slipped)
    if not slipped and rng.random() < MISREAD_SHARE:
        wrong = rng.choice(misreadings(question.query))
    failed = _error(task, wrong)
    if failed is None:
        told = f"wrong: {told}"
        result = show(run(task["database"], wrong))
        repair = to_rewriter(schema, asked, wrong, result, told)
    else:
        repair = to_rewriter(schema, asked, wrong, failed, None)
    if failed is None and (slipped or rng.random() < WRONG_SHARE):
        seen, verdict = wrong, told
    else:
        seen, verdict = right, "correct"
    prompt = to_checker(schema, asked, seen, show(run(task["database"], seen)))
    yield _row(task, "checker", prompt, verdict, slip=False)
    slipped = rng.random() < slips
    other = rng.choice([query for query, _ in made if query != wrong])
    yield _row(task, "rewriter", repair, other if slipped else right, slip=slipped)


def _error(task: dict[str, Any], query: str) -> str | None:
    """What the agent is told where a query can't be run."""
    try:
        run(task["database"], query)
    except QueryError as error:
        return cut(f"error: {error}")
    return None


def _row(
    task: dict[str, Any], agent: str, prompt: list[Message], answer: str, *, slip: bool
) -> dict[str, Any]:
    return {
        "id": task["id"],
        "messages": [*prompt, {"role": "assistant", "content": answer}],
        "metadata": {"agent": agent, "slip": slip, "kind": task["kind"]},
    }
