"""What a comparison of credit methods has shown, as numbers and as a page. Pure.

Invariant: methods are compared seed by seed, over the seeds that both have; what differs between seeds drops out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import accumulate
from statistics import fmean
from typing import Any

from lightningrl.errors import RunError
from lightningrl.metrics import MetricLine
from lightningrl.statistics import contrast
from lightningrl_verl.training.metrics import SAMPLED_TOKENS

Row = dict[str, Any]
"""One cell: its score, its curve, and what it cost."""

_COSTS = ("iterations", "sampled_tokens", "prompt_tokens", "tool_calls", "seconds")


def told_of(
    cells: Sequence[tuple[str, int, Sequence[MetricLine]]],
    *,
    methods: Sequence[str],
    seeds: Sequence[int],
    tokens: int,
    score: str,
) -> dict[str, Any]:
    """What is known, for `compare.json`.

    Args:
        cells: method, seed and metrics of each run that has ended.
        methods: the first is the one that others are compared with.
        seeds: that all methods should have.
        tokens: that all should have sampled.
        score: the metric of the last line that counts.

    Raises:
        RunError: a run ended with fewer tokens, or has no such score.
    """
    rows = [_row(method, seed, lines, tokens, score) for method, seed, lines in cells]
    told: dict[str, Any] = {"score": score, "tokens": tokens, "methods": list(methods)}
    told |= {"seeds": list(seeds), "cells": rows, "differences": {}}
    of = {name: {row["seed"]: row["score"] for row in rows if row["method"] == name} for name in methods}  # fmt: skip
    first = methods[0]
    for name in methods[1:]:
        both = [seed for seed in seeds if seed in of[name] and seed in of[first]]
        if len(both) >= 2:
            found = contrast([of[first][one] for one in both], [of[name][one] for one in both])
            told["differences"][name] = {
                **{key: round(value, 6) for key, value in found._asdict().items()},
                "seeds": len(both),
            }
    return told


def _row(method: str, seed: int, lines: Sequence[MetricLine], tokens: int, score: str) -> Row:
    def total(name: str) -> float:
        return sum(line.get(name) or 0 for line in lines)

    sampled, last = total(SAMPLED_TOKENS), lines[-1]
    if sampled < tokens:
        enough = math.ceil(1.5 * last["iteration"] * tokens / max(sampled, 1))
        raise RunError(
            f"{method!r} with seed {seed} sampled {sampled:,} of {tokens:,} tokens in its {last['iteration']} iterations,"
            " and methods are compared at equal tokens. Compare to fewer by --tokens, or give each cell more iterations:"
            f" algorithm.iterations={enough}, under another 'name'"
        )
    if last.get(score) is None:
        raise RunError(
            f"{method!r} with seed {seed} has no {score!r} in its last line of metrics; name another one by --score"
        )
    calls = sum(
        (line.get("train/tool_calls_per_rollout") or 0) * (line.get("train/rollouts") or 0)
        for line in lines
    )
    return {
        "method": method,
        "seed": seed,
        "score": last[score],
        "curve": _curve(lines),
        "iterations": last["iteration"],
        "sampled_tokens": sampled,
        "prompt_tokens": total("train/prompt_tokens"),
        "tool_calls": round(calls),
        "seconds": round(total("timing/iteration_seconds"), 1),
    }


def _curve(lines: Sequence[MetricLine]) -> list[tuple[float, float]]:
    """The tokens sampled so far and the training reward, of each iteration that had one."""
    so_far = list(accumulate(line.get(SAMPLED_TOKENS) or 0 for line in lines))
    rewards = [line.get("train/reward") for line in lines]
    return [(tokens, round(one, 6)) for tokens, one in zip(so_far, rewards, strict=True) if one is not None]  # fmt: skip


def page(told: Mapping[str, Any]) -> str:
    """The same for people, in Markdown."""
    cells: Sequence[Row] = told["cells"]
    wanted = len(told["methods"]) * len(told["seeds"])
    lines = [
        f"# Credit methods at {told['tokens']:,} sampled tokens",
        "",
        f"{len(cells)} of {wanted} cells. Scores are `{told['score']}` of the last iteration, means over seeds; costs are"
        " means of a cell, its training rollouts alone. A difference is taken seed by seed, with Student's 95 % interval;"
        " *could see* is the smallest true difference that as many seeds would have found four times in five.",
        "",
        "| method | seeds | score | minus the first | 95 % interval | could see | iterations | sampled tokens |"
        " prompt tokens | tool calls | seconds |",
        "|" + "---|" * 11,
    ]
    for name in told["methods"]:
        own = [row for row in cells if row["method"] == name]
        if not own:
            lines.append(f"| {name} | 0 | not run | | | | | | | | |")
            continue
        costs = " | ".join(f"{fmean(row[cost] for row in own):,.0f}" for cost in _COSTS)
        score = fmean(row["score"] for row in own)
        difference = _difference(told["differences"].get(name))
        lines.append(f"| {name} | {len(own)} | {score:.3f} | {difference} | {costs} |")
    lines += ["", "| method | " + " | ".join(f"seed {seed}" for seed in told["seeds"]) + " |"]
    lines.append("|---|" + "---|" * len(told["seeds"]))
    for name in told["methods"]:
        of = {row["seed"]: f"{row['score']:.3f}" for row in cells if row["method"] == name}
        lines.append(f"| {name} | " + " | ".join(of.get(one, "") for one in told["seeds"]) + " |")
    return "\n".join(lines) + "\n"


def _difference(found: Mapping[str, float] | None) -> str:
    if found is None:
        return " | | "
    interval = f"{found['low']:+.3f} to {found['high']:+.3f}"
    return f"{found['mean']:+.3f} | {interval} | {found['detectable']:.3f}"
