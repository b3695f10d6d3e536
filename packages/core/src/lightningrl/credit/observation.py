"""What a state key takes of a text: the rules that drop what differs without meaning anything.

Invariant: pure and idempotent, so that a text which was written down normalised stays as it is.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from lightningrl.credit.turns import canonical_json
from lightningrl.errors import ConfigError
from lightningrl.user_input.names import suggest

_IDS = frozenset({"tool_call_id", "id", "created", "created_at", "request_id", "timestamp"})
"""JSON keys that name or date a thing and say nothing of it."""

_DIGITS = 6
"""Decimals that numbers keep: scores jitter beyond them."""


_LONGEST = 32
"""Characters from which on digits are an identifier and no number."""

_NUMBER = re.compile(
    r"(?<![\d.])(?<!\de)(?<!\de[-+])-?\d+\.\d+(?:e[-+]?\d+)?(?!\d|\.\d|e[-+]?\d)",
    re.IGNORECASE,
)
"""A number with decimals. One that is rounded twice must not change, so parts of versions (1.2.3) are none."""


def _replace(pattern: str, by: str) -> Callable[[str], str]:
    compiled = re.compile(pattern, re.IGNORECASE)
    return lambda text: compiled.sub(by, text)


def _json(text: str) -> str:
    """A JSON text with sorted keys and without ids; any other text unchanged."""
    if not text.lstrip().startswith(("{", "[")):
        return text
    try:
        plain: Any = msgspec.json.decode(text)
    except msgspec.DecodeError:
        return text
    return canonical_json(_without_ids(plain))


def _without_ids(plain: Any) -> Any:
    if isinstance(plain, dict):
        return {key: _without_ids(value) for key, value in plain.items() if key not in _IDS}
    return [_without_ids(one) for one in plain] if isinstance(plain, list) else plain


def _round(text: str) -> str:
    return _NUMBER.sub(_rounded, text)


def _rounded(found: re.Match[str]) -> str:
    number = float(found[0])
    if len(found[0]) >= _LONGEST or not math.isfinite(number):
        return found[0]
    shown = f"{number:.{_DIGITS}f}".rstrip("0").rstrip(".")
    return "0" if shown == "-0" else shown


def _space(text: str) -> str:
    lines = [line.rstrip() for line in text.strip().splitlines()]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines))


RULES: dict[str, Callable[[str], str]] = {
    "unicode": lambda text: unicodedata.normalize("NFC", text),
    "json": _json,
    "uuids": _replace(r"\b[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\b", "<uuid>"),
    "dates": _replace(
        r"\b\d{4}-\d{2}-\d{2}(?:[T ]\d{2}:\d{2}(?::\d{2}(?:\.\d+)?)?(?:Z|[-+]\d{2}:?\d{2})?)?\b"
        r"|\b(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun), \d{1,2} [A-Z][a-z]{2} \d{4}(?: \d{2}:\d{2}:\d{2})?"
        r"(?: (?:GMT|UTC|[-+]\d{4}))?\b|\b\d{2}:\d{2}:\d{2}(?:\.\d+)?\b",
        "<date>",
    ),
    "epochs": _replace(r"\b1\d{9}(?:\.\d+)?\b|\b1\d{12}\b", "<epoch>"),
    "hex": _replace(r"\b0x[0-9a-f]+\b|\b(?=[0-9]*[a-f])(?=[a-f]*[0-9])[0-9a-f]{12,}\b", "<hex>"),
    "paths": _replace(r"/(?:tmp|var/folders|var/tmp)/[^\s'\",:)]+", "<path>"),
    "ports": _replace(r"\b(localhost|127\.0\.0\.1|0\.0\.0\.0):\d{2,5}\b", r"\1:<port>"),
    "processes": _replace(r"\bpid[ =:]*\d+\b", "pid <pid>"),
    "durations": _replace(
        r"\b\d+(?:\.\d+)? ?(?:ms|us|µs|ns|s|secs?|seconds?|minutes?)\b", "<time>"
    ),
    "counters": _replace(
        r"\b(step|turn|attempt|try|iteration|page)s?\b[ #:]*\d+(?: ?(?:/|of) ?\d+)?"
        r"|\b(remaining|left)\b[ :=]*\d+|\b\d+ (?:steps?|turns?|tries) (?:left|remaining)\b",
        "<counter>",
    ),
    "lines": _replace(r"\bline \d+\b|(?<=\.[a-z]{2}):\d+(?::\d+)?\b", "line <n>"),
    "numbers": _round,
    "space": _space,
}
"""The rules by name, in the order in which they are applied."""


def normaliser(names: Sequence[str] | None) -> Callable[[str], str]:
    """A function that applies the named rules in the order of `RULES`; `None` names all.

    Raises:
        ConfigError: a name is unknown.
    """
    for name in names or ():
        if name not in RULES:
            raise ConfigError(
                f"algorithm.credit_args.rules: no rule {name!r}.{suggest(name, RULES)}"
            )
    rules = [rule for name, rule in RULES.items() if names is None or name in names]

    def normalise(text: str) -> str:
        for rule in rules:
            text = rule(text)
        return text

    return normalise
