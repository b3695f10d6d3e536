"""Demonstrations: what each of the three roles answers to prompts as the agent sends them.

Half of what the checker and the rewriter are shown is wrong, so that they learn to tell and to mend it. Beyond that, writer
and rewriter slip themselves in the share `slips` of their answers: then they are taught wrong queries, and reinforcement
learning has something to find out. Where `slips` is 0, every answer is right.

Invariant: `demonstrations` is a pure function of its arguments, about questions and databases of the training split alone.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lightningrl_bench_sql.database import QueryError, cut, run, show
from lightningrl_bench_sql.mistakes import mistakes
from lightningrl_bench_sql.prompts import Message, to_checker, to_rewriter, to_writer
from lightningrl_bench_sql.questions import Question
from lightningrl_bench_sql.tasks import LEVELS, draw

WRONG_SHARE = 0.5
"""How often the checker or the rewriter is shown a wrong query."""


def demonstrations(
    count: int,
    seed: int,
    slips: float = 0.2,
    levels: Sequence[int] = LEVELS,
    folder: str | Path | None = None,
) -> list[dict[str, Any]]:
    """Return dialogues for `count` tasks, two or three each, as `policies.NAME.warm_start` reads them.

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
    mistake, told = rng.choice(mistakes(question.query))
    slip = mistake.sql()
    slipped = rng.random() < slips
    yield _row(task, "writer", to_writer(schema, asked), slip if slipped else right, slip=slipped)
    seen_wrong = slipped or rng.random() < WRONG_SHARE
    query = slip if seen_wrong else right
    verdict = f"wrong: {told}" if seen_wrong else "correct"
    try:
        result = show(run(task["database"], query))
        prompt = to_checker(schema, asked, query, result)
        yield _row(task, "checker", prompt, verdict, slip=False)
    except QueryError as error:
        result, verdict = cut(f"error: {error}"), None
    if seen_wrong:
        # It most often repeats what it was shown.
        slipped = rng.random() < slips
        prompt = to_rewriter(schema, asked, query, result, verdict)
        yield _row(task, "rewriter", prompt, query if slipped else right, slip=slipped)


def _row(
    task: dict[str, Any], agent: str, prompt: list[Message], answer: str, *, slip: bool
) -> dict[str, Any]:
    return {
        "id": task["id"],
        "messages": [*prompt, {"role": "assistant", "content": answer}],
        "metadata": {"agent": agent, "slip": slip, "kind": task["kind"]},
    }
