"""The reward: 1 if the agent's final answer is the right number, else 0.

Invariant: it reads only the task and the agent's output, never how the agent got there, and it
never raises on what a model may write.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from decimal import Decimal, InvalidOperation
from typing import Any

_NUMBER = re.compile(r"-?\d+(\.\d+)?")
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")


def told_apart(task: Mapping[str, Any], output: object, trace: object) -> dict[str, float]:
    """Return `exact_match` as "final", with "format" (is it a number at all) and, if so, "accuracy" beside it."""
    final = exact_match(task, output, trace)
    readable = output is not None and _NUMBER.fullmatch(normalise(str(output))) is not None
    return {"final": final, "format": float(readable), **({"accuracy": final} if readable else {})}


def exact_match(task: Mapping[str, Any], output: object, trace: object) -> float:  # noqa: ARG001
    """Return 1.0 if `output` equals `task["answer"]` after `normalise`, else 0.0.

    `output` may be anything, `None` included; `trace` is part of a reward's contract and not used.
    """
    return float(output is not None and normalise(str(output)) == normalise(str(task["answer"])))


def normalise(answer: str) -> str:
    """Return one spelling for equal answers: "1,200.", " 1200.0 " and "1200" are all "1200".

    Text that is no finite number is returned stripped; the empty text stays empty.
    """
    text = _THOUSANDS.sub("", answer.strip().removesuffix(".").strip())
    try:
        number = Decimal(text)
    except InvalidOperation:
        return text
    # Very long or tiny exponents would expand to huge strings; nobody's answer looks so.
    if not number.is_finite() or abs(number.adjusted()) > 30:
        return text
    return format(number.normalize(), "f") if number else "0"
