"""Generated word problems: of level 1 they take one to three calculations, of level 2 up to eight.

A story is a start ("tom has 4 bags of 7 pens"), an event ("and loses 3.") and a question ("how many
now?"); the three together are its *structure*. Level 2 has up to six further events behind the first one, and often a
sentence that has nothing to do with it ("ana has 9 cups."). Invariants, each checked by a test:

- `generate(split, count, seed, level)` is a pure function, and no question occurs twice in its list.
- What is in `val` is not in `train`, and what is in `test` is in neither: structures, names, items,
  and two-digit numbers (one-digit numbers are shared: there are too few to hold any out).
- Every start, event and question occurs in every split; only their combinations are held out. Of a longer story that
  is the combination of its start, its first event and its question.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

Split = Literal["train", "val", "test"]
Step = tuple[int, str, int]
"""One calculation: left operand, operator (+ - * %), right operand."""

Structure = tuple[str, str, str]
"""Names of a start, an event and a question."""

Level = Literal[1, 2]
"""How long the stories are."""

STARTS: Mapping[str, str] = {
    "has": "{name} has {x} {item}",
    "bags": "{name} has {x} bags of {y} {item}",
    "boxes": "{name} finds {x} boxes of {y} {item}",
}
EVENTS: Mapping[str, tuple[str, str]] = {
    "gets": ("gets {z} more", "+"),
    "loses": ("loses {z}", "-"),
    "buys": ("buys {z} more", "+"),
    "gives": ("gives away {z}", "-"),
    "triples": ("triples them", "*3"),
    "doubles": ("doubles them", "*2"),
}
QUESTIONS: Mapping[str, tuple[str, str]] = {
    "now": ("how many now?", ""),
    "cost": ("each costs {v}. what is the total?", "*"),
    "left": ("they are shared by {v}. how many are left over?", "%"),
}
NAMES: Mapping[Split, tuple[str, ...]] = {
    "train": ("tom", "ana", "raj", "mei", "eva", "leo", "kim"),
    "val": ("zoe", "ivan"),
    "test": ("nora", "omar"),
}
ITEMS: Mapping[Split, tuple[str, ...]] = {
    "train": ("apples", "pens", "books", "coins", "cups"),
    "val": ("kites", "lamps"),
    "test": ("shells", "rings"),
}
LARGEST = 99
"""Largest number written in a story."""
LARGEST_RESULT = 99_999
"""Largest number that a story comes to on its way."""
FURTHER_EVENTS = range(1, 6)
"""How many events of level 2 follow the first one: with start and question up to eight calculations."""
DISTRACTOR_SHARE = 0.5
"""How often a story of level 2 has a sentence that has nothing to do with it."""
ONE_DIGIT_SHARE = 0.25
"""How often a number that may be large has one digit."""

_HELD_OUT_REMAINDERS: Mapping[int, Split] = {5: "val", 11: "test"}
"""Two-digit numbers of this remainder modulo 12 belong to that split alone, all others to train."""

_MAX_TRIES = 200
"""Drawings for one new question before the split is declared exhausted."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One word problem and its solution."""

    question: str
    structure: str
    """Names of start, events and question, joined by a slash: "bags/loses/now"."""
    steps: tuple[Step, ...]
    """The calculations in order; each one's left operand, after the first, is the result before."""
    answer: int


def generate(
    split: Split, count: int, seed: int, level: Level = 1, even: bool = False
) -> list[dict[str, Any]]:
    """Return `count` different problems of `split` as JSON rows, the same for the same arguments.

    A row has `id`, `question`, `answer` (text), `structure` and `steps`; an agent is shown `question`
    only. `even` is that of `draw`.

    Raises:
        ValueError: for an unknown split or level, a negative count, or more questions than the split holds.
    """
    if split not in get_args(Split):
        raise ValueError(f"unknown split {split!r}: choose one of {', '.join(get_args(Split))}")
    if level not in get_args(Level):
        raise ValueError(f"unknown level {level!r}: choose one of {get_args(Level)}")
    if count < 0:
        raise ValueError(f"count must not be negative, got {count}")
    rng = random.Random(f"{split}/{seed}")
    problems: dict[str, Problem] = {}
    while len(problems) < count:
        problem = _new_problem(split, level, even, rng, problems)
        problems[problem.question] = problem
    return [_row(f"{split}-{seed}-{n}", problem) for n, problem in enumerate(problems.values())]


def structures(split: Split) -> list[str]:
    """Return the story structures of `split`: 42 to train on, 6 for each other split."""
    return ["/".join(parts) for parts in _STRUCTURES[split]]


def vocabulary() -> list[str]:
    """Return every word of the stories of all splits, sorted."""
    texts = [*STARTS.values(), *(text for text, _ in (*EVENTS.values(), *QUESTIONS.values()))]
    told = re.findall(r"[a-z]+", " ".join(re.sub(r"{.*?}", "", text) for text in texts))
    return sorted(
        {*told, "and", *(word for split in NAMES for word in (*NAMES[split], *ITEMS[split]))}
    )


def training_numbers() -> list[int]:
    """Return the numbers that a training question may contain, in order."""
    return [*_ONE_DIGIT, *_TWO_DIGITS["train"]]


def draw(split: Split, rng: random.Random, level: Level = 1, even: bool = False) -> Problem:
    """Return one problem of `split`, drawn with `rng`.

    Args:
        split: whose structures, names, items and numbers it has.
        rng: draws.
        level: how long it is.
        even: one, two and three calculations are equally likely, further events aside, and so is each structure of as
            many. Else every structure is equally likely, and one in nine takes one calculation.
    """
    among = _STRUCTURES[split]
    if even:
        steps = rng.randint(1, 3)
        among = [one for one in among if _calculations(one) == steps]
    structure = rng.choice(among)
    while True:
        further = rng.choices(list(EVENTS), k=rng.choice(FURTHER_EVENTS)) if level > 1 else []
        aside = level > 1 and rng.random() < DISTRACTOR_SHARE
        problem = _tell(split, structure, further, rng, aside=aside)
        if problem is not None:
            return problem


def calculate(step: Step) -> int:
    """Return the result of one calculation."""
    left, operator, right = step
    match operator:
        case "+":
            return left + right
        case "-":
            return left - right
        case "*":
            return left * right
        case "%":
            return left % right
        case _:
            raise ValueError(f"unknown operator {operator!r} in step {step!r}")


def _new_problem(
    split: Split, level: Level, even: bool, rng: random.Random, known: Mapping[str, Problem]
) -> Problem:
    """Return a problem whose question is not in `known`."""
    for _ in range(_MAX_TRIES):
        problem = draw(split, rng, level, even)
        if problem.question not in known:
            return problem
    raise ValueError(
        f"split {split!r} has no more than about {len(known)} questions: ask for fewer"
    )


def _tell(
    split: Split, structure: Structure, further: Sequence[str], rng: random.Random, *, aside: bool
) -> Problem | None:
    """Draw the numbers and words of a story; `None` if more than half would be lost in it, or it grows too large.

    Args:
        split: whose words and numbers it has.
        structure: its start, first event and question.
        further: its other events.
        rng: draws.
        aside: whether it has a sentence that has nothing to do with it.
    """
    start, first, question = structure
    events = (first, *further)
    x, z = _number(split, rng), [_number(split, rng) for _ in events]
    y, v = rng.choice(_ONE_DIGIT), rng.choice(_ONE_DIGIT)
    steps: list[Step] = []
    value = x
    if start != "has":
        steps.append((x, "*", y))
        value = x * y
    operations = [
        (operation[0], int(operation[1:] or number))
        for (_, operation), number in zip((EVENTS[event] for event in events), z, strict=True)
    ]
    question_text, question_operator = QUESTIONS[question]
    for operator, operand in (*operations, (question_operator, v)):
        # Up to a half: x - z is x % z for z <= x < 2z, and a wrong operator must not be right.
        if operator == "-" and 2 * operand > value:
            return None
        if operator:
            steps.append((value, operator, operand))
            value = calculate(steps[-1])
        if value > LARGEST_RESULT:
            return None
    told = " and ".join(
        EVENTS[event][0].format(z=number) for event, number in zip(events, z, strict=True)
    )
    name, item = rng.choice(NAMES[split]), rng.choice(ITEMS[split])
    between = f"{_distractor(split, name, item, rng)} " if aside else ""
    text = f"{STARTS[start]} and {told}. {between}{question_text}".format(
        name=name, item=item, x=x, y=y, v=v
    )
    return Problem(text, "/".join((start, *events, question)), tuple(steps), value)


def _calculations(structure: Structure) -> int:
    """Return how many calculations a story of this structure takes, further events aside."""
    start, _, question = structure
    return 1 + (start != "has") + (question != "now")


def _distractor(split: Split, name: str, item: str, rng: random.Random) -> str:
    """Return a sentence about somebody else and something else."""
    other = rng.choice([one for one in NAMES[split] if one != name])
    thing = rng.choice([one for one in ITEMS[split] if one != item])
    return f"{other} has {_number(split, rng)} {thing}."


def _number(split: Split, rng: random.Random) -> int:
    """Return a number of `split` between 2 and `LARGEST`, of one digit as often in every split."""
    if rng.random() < ONE_DIGIT_SHARE:
        return rng.choice(_ONE_DIGIT)
    return rng.choice(_TWO_DIGITS[split])


def _row(identifier: str, problem: Problem) -> dict[str, Any]:
    """Return the JSON row of one problem."""
    return {
        "id": identifier,
        "question": problem.question,
        "answer": str(problem.answer),
        "structure": problem.structure,
        "steps": [list(step) for step in problem.steps],
    }


def _split_numbers() -> dict[Split, list[int]]:
    """Return the two-digit numbers that each split may write in a story."""
    numbers: dict[Split, list[int]] = {split: [] for split in get_args(Split)}
    for number in range(10, LARGEST + 1):
        numbers[_HELD_OUT_REMAINDERS.get(number % 12, "train")].append(number)
    return numbers


def _split_structures() -> dict[Split, list[Structure]]:
    """Hold out, for each event, one pair of start and question for val and another for test.

    The pairs run through starts and questions in turn, so that each is held out equally often.
    """
    starts, questions = list(STARTS), list(QUESTIONS)
    held: dict[Structure, Split] = {}
    for n, event in enumerate(EVENTS):
        held[starts[n % 3], event, questions[n // 2]] = "val"
        held[starts[(n + 1) % 3], event, questions[(n // 2 + 1) % 3]] = "test"
    split: dict[Split, list[Structure]] = {"train": [], "val": [], "test": []}
    for structure in ((s, e, q) for s in starts for e in EVENTS for q in questions):
        split[held.get(structure, "train")].append(structure)
    return split


_ONE_DIGIT = list(range(2, 10))
_TWO_DIGITS = _split_numbers()
_STRUCTURES = _split_structures()
