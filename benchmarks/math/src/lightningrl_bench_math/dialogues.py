"""Demonstrations for a language model: the agent's own dialogues, some with a slip, most slips mended.

A slip is a call that the calculator can't read, or the wrong operator. Without slips a policy never sees what to do
after one, and reinforcement learning has no mended one to reward.

Invariants, each checked by a test: a dialogue's messages and tools are what `agent.solve` sends when a model answers so; it
is about a training problem; an unmended slip is the only thing that makes its answer wrong.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from typing import Any

from lightningrl_bench_math.calculator import CalculatorError, evaluate
from lightningrl_bench_math.prompts import INSTRUCTIONS, INSTRUCTIONS_WITHOUT_TOOL, TOOL
from lightningrl_bench_math.tasks import Level, Problem, draw

Message = dict[str, Any]

UNREADABLE_SHARE = 0.5
"""Share of slips that the calculator refuses; the call is made again, rightly."""
SILENT_SHARE = 0.2
"""Share of slips that are a wrong operator which is gone on with; all others are mended by the next call."""


def dialogues(
    count: int, seed: int, slips: float = 0.2, level: Level = 1, even: bool = False
) -> Iterator[dict[str, Any]]:
    """Yield `count` demonstrations, for `policies.NAME.warm_start`.

    Args:
        count: how many.
        seed: the same arguments give the same ones.
        slips: share of dialogues that have a slip, 0 to 1.
        level: of the problems.
        even: whether one, two and three calculations are equally likely, as `tasks.draw` says.

    Raises:
        ValueError: `slips` is no share.
    """
    if not 0 <= slips <= 1:
        raise ValueError(f"slips must be between 0 and 1, got {slips}")
    rng = random.Random(f"dialogues/{seed}")
    for number in range(count):
        problem = draw("train", rng, level, even)
        slipping = rng.randrange(len(problem.steps)) if rng.random() < slips else None
        yield {
            "id": f"{seed}-{number}",
            "messages": _messages(problem, slipping, rng),
            "tools": [TOOL],
        }


def answers(
    count: int, seed: int, level: Level = 1, even: bool = False
) -> Iterator[dict[str, Any]]:
    """Yield `count` demonstrations of the agent without a tool, for the control: the right number at once."""
    rng = random.Random(f"dialogues/{seed}")
    for number in range(count):
        problem = draw("train", rng, level, even)
        yield {
            "id": f"{seed}-{number}",
            "messages": [
                {"role": "system", "content": INSTRUCTIONS_WITHOUT_TOOL},
                {"role": "user", "content": problem.question},
                {"role": "assistant", "content": str(problem.answer)},
            ],
        }


def _messages(problem: Problem, slipping: int | None, rng: random.Random) -> list[Message]:
    messages: list[Message] = [
        {"role": "system", "content": INSTRUCTIONS},
        {"role": "user", "content": problem.question},
    ]
    value = str(problem.steps[0][0])
    for number, (_, operator, right) in enumerate(problem.steps):
        kind = "" if number != slipping else _kind(rng)
        if kind == "unreadable":
            _call(messages, f"{value} {operator}")
        elif kind:
            wrong = _call(messages, f"{value} {rng.choice(_others(operator))} {right}")
            if kind == "silent":
                value = wrong
                continue
        value = _call(messages, f"{value} {operator} {right}")
    messages.append({"role": "assistant", "content": value})
    return messages


def _kind(rng: random.Random) -> str:
    if rng.random() < UNREADABLE_SHARE:
        return "unreadable"
    return "silent" if rng.random() < SILENT_SHARE / (1 - UNREADABLE_SHARE) else "mended"


def _others(operator: str) -> str:
    """The operators that are not this one."""
    return "".join(one for one in "+-*%" if one != operator)


def _call(messages: list[Message], expression: str) -> str:
    """Add a call and what the calculator says to it; return that."""
    try:
        result = evaluate(expression)
    except CalculatorError as error:
        result = str(error)
    identifier = f"call-{len(messages)}"
    function = {"name": "calculator", "arguments": json.dumps({"expression": expression})}
    messages += [
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": identifier, "type": "function", "function": function}],
        },
        {"role": "tool", "tool_call_id": identifier, "content": result},
    ]
    return result
