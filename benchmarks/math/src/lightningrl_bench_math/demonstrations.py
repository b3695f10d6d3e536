"""Noisy demonstrations, from which a tiny policy learns the format but only half of the task.

The noise sits in *decisions*: stop early, take the remainder where the story subtracts, multiply
where it asks for the remainder. Reading and copying are shown right, so that reinforcement learning
has something to choose from instead of something to invent.

Invariant: `demonstration` is a pure function of its generator, it solves training problems only, and
copy rows are the only place where it shows words (never structures or two-digit numbers) of the
other splits.

A demonstration is a list of (text, is_action): the conversation in the tiny policy's chat format,
where the actions are what the policy itself is to write.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping

from lightningrl_bench_math.tasks import (
    ITEMS,
    NAMES,
    Problem,
    Step,
    calculate,
    draw,
    training_numbers,
)

Segment = tuple[str, bool]

COPY_SHARE = 0.12
"""Share of rows that only repeat a list of words and numbers."""
COPY_PIECES = 6
"""Words and numbers in a copy row."""
STOP_EARLY_SHARE = 0.1
"""Share of rows that answer before the calculations are done."""
HABITS: Mapping[str, tuple[str, float]] = {
    "loses": ("%", 0.6),
    "gives": ("%", 0.6),
    "left": ("*", 0.6),
}
"""Part of a story -> the wrong operator that is taken for it, and how often.

Above one half, so that greedy decoding is wrong too. The wrong operator is not that of another event:
with "+" for "loses" the warm start learns no difference between losing and getting, and reinforcement
learning, which only chooses among what is sampled, then has to invent it.
"""
RANDOM_OPERATOR_SHARE = 0.02
"""How often any other operator is replaced by a random one."""


def demonstration(rng: random.Random) -> list[Segment]:
    """Return one noisy demonstration."""
    if rng.random() < COPY_SHARE:
        return _copy_row(rng)
    problem = draw("train", rng)
    segments: list[Segment] = [(f"<user> {problem.question}<asst>", False)]
    shown = _steps_shown(problem, rng)
    value: int | None = None
    for part, step in list(zip(_parts(problem), problem.steps, strict=True))[:shown]:
        taken = _slip(part, step if value is None else (value, step[1], step[2]), rng)
        value = calculate(taken)
        segments.append((f"<call>{taken[0]}{taken[1]}{taken[2]}<end>", True))
        segments.append((f"<tool>{value}<asst>", False))
    answer = rng.choice(re.findall(r"\d+", problem.question)) if value is None else value
    segments.append((f"<ans>{answer}<end>", True))
    return segments


def _copy_row(rng: random.Random) -> list[Segment]:
    """Return a row whose answer repeats some words and numbers of the prompt."""
    names = [word for split in NAMES for word in (*NAMES[split], *ITEMS[split])]
    numbers = [str(rng.choice(_NUMBERS)) for _ in names]
    text = "".join(f" {piece}" for piece in rng.choices(names + numbers, k=COPY_PIECES))
    return [(f"<user>{text}<asst>", False), (f"{text}<end>", True)]


def _steps_shown(problem: Problem, rng: random.Random) -> int:
    """Return after how many calculations the demonstration answers; too early is often at once."""
    count = len(problem.steps)
    if rng.random() >= STOP_EARLY_SHARE:
        return count
    return 0 if rng.random() < 0.35 else rng.randrange(count)


def _parts(problem: Problem) -> list[str]:
    """Return for each step the part of the story that asks for it."""
    return [part for part in problem.structure.split("/") if part not in ("has", "now")]


def _slip(part: str, step: Step, rng: random.Random) -> Step:
    """Return the step for `part`, perhaps with a wrong operator; never one that goes below zero."""
    left, operator, right = step
    habit, share = HABITS.get(part, (operator, 0.0))
    if rng.random() < share:
        operator = habit
    elif rng.random() < RANDOM_OPERATOR_SHARE:
        operator = rng.choice("+-*")
    if operator == "-" and left < right:
        operator = "+"
    return left, operator, right


_NUMBERS = [*training_numbers(), *range(100, 1000)]
