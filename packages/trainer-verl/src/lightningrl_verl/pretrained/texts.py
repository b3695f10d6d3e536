"""Texts of the kinds that agents send, drawn from a seed, to try a tokenizer on.

Invariant: the same count and seed give the same texts; they hold every Unicode plane that the alphabet can.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Sequence

_WORDS = (
    "the", "agent", "calls", "a", "tool", "and", "reads", "what", "it", "says", "don't", "I'll", "we've", "naïve",
    "Größe", "Ελλάδα", "Москва", "東京", "عربى", "हिन्दी", "select", "count", "where", "user_id", "camelCase",
    "__init__", "HTTP",
)  # fmt: skip
_BLANKS = (
    " ",
    "  ",
    "\n",
    "\n\n",
    "\n\n\n",
    "\t",
    "\r\n",
    " \n",
    "\n ",
    "    ",
    " \t ",
    "\u00a0",
    "\u3000",
)
_MARKS = (*"!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~", "...", "->", "==", "</", "}}", '":', "—", "“", "€")
_RANGES = (
    (0x20, 0x7E), (0xA1, 0x24F), (0x370, 0x6FF), (0x900, 0xFFF), (0x2000, 0x2BFF), (0x3040, 0xD7FF),
    (0xE000, 0xFFFD), (0x10000, 0x10FFFF),
)  # fmt: skip
_CODE = (
    "def f(x):\n    return x * {n}\n",
    "SELECT name, COUNT(*) FROM t{n} WHERE a >= {n} GROUP BY 1;",
    "for (int i = 0; i < {n}; ++i) {{ s += a[i]; }}\n",
    "https://example.org/a?b={n}&c=%20#d",
    "```python\nprint({n})\n```\n",
    "| a | {n} |\n|---|---:|\n",
)


def draw_texts(count: int, *, seed: int, unwritable: frozenset[int]) -> Iterator[str]:
    """Yield `count` texts, none empty.

    Args:
        count: how many.
        seed: of the generator.
        unwritable: UTF-8 bytes that no token stands for; characters with one are left out.
    """
    rng = random.Random(seed)
    makers: Sequence[Callable[[random.Random], str]] = (
        _word, _word, _blank, _blank, _number, _number, _mark, _characters, _code, _tool_call,
    )  # fmt: skip
    for _ in range(count):
        parts = [rng.choice(makers)(rng) for _ in range(rng.randint(1, 10))]
        text = "".join(parts)
        if unwritable:
            text = "".join(c for c in text if unwritable.isdisjoint(c.encode()))
        yield text or "0"


def _word(rng: random.Random) -> str:
    return rng.choice(("", " ")) + rng.choice(_WORDS)


def _blank(rng: random.Random) -> str:
    return rng.choice(_BLANKS)


def _number(rng: random.Random) -> str:
    return rng.choice(
        (str(rng.randint(0, 99)), str(rng.randint(0, 10**9)), f"{rng.uniform(-1e4, 1e4):.3f}")
    )


def _mark(rng: random.Random) -> str:
    return rng.choice(_MARKS) * rng.choice((1, 1, 1, 3))


def _characters(rng: random.Random) -> str:
    low, high = rng.choice(_RANGES)
    return "".join(chr(rng.randint(low, high)) for _ in range(rng.randint(1, 6)))


def _code(rng: random.Random) -> str:
    return rng.choice(_CODE).format(n=rng.randint(0, 9999))


def _tool_call(rng: random.Random) -> str:
    arguments = {
        _word(rng).strip(): rng.choice(
            (rng.randint(-99, 9999), _word(rng) + _blank(rng), [1, 2.5, None], True)
        )
        for _ in range(rng.randint(0, 3))
    }
    call = {"name": rng.choice(_WORDS), "arguments": arguments}
    return f"<tool_call>\n{json.dumps(call, ensure_ascii=False)}\n</tool_call>"
