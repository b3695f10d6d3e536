"""How the findings of checks are shown: to people, and as JSON to programs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
from rich.text import Text

from lightningrl.checks import Finding, Level

_MARK = {Level.PROBLEM: ("✗", "bold red"), Level.WARNING: ("!", "bold yellow")}


def findings_text(findings: Sequence[Finding]) -> Text:
    """A paragraph for each: kind, evidence, remedy."""
    text = Text()
    for one in findings:
        mark, style = _MARK[one.level]
        text.append(f"\n\n{mark} {one.kind}\n", style)
        text.append(f"  {one.evidence}\n")
        text.append(f"  → {one.remedy}", "cyan")
    return text


def counts_text(findings: Sequence[Finding]) -> Text:
    """`2 problems, 1 warning`."""
    counts = [
        (sum(one.level is level for one in findings), level.value, style)
        for level, (_, style) in _MARK.items()
    ]
    parts = [
        Text(f"{number} {noun}{'s' if number > 1 else ''}", style.removeprefix("bold "))
        for number, noun, style in counts
        if number
    ]
    return Text(", ").join(parts)


def as_json(findings: Iterable[Finding]) -> list[Any]:
    """Each as an object with `kind`, `level`, `evidence` and `remedy`."""
    return msgspec.to_builtins(list(findings))


def any_problem(findings: Iterable[Finding]) -> bool:
    """Whether one of them must not pass in silence: the command exits with 1."""
    return any(one.level is Level.PROBLEM for one in findings)
