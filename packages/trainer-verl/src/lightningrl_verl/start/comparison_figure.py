"""A comparison of credit methods as a picture.

Invariant: every point is a number of `compare.json`; the one derived line, a method's mean over seeds, is taken at equal
sampled tokens, by straight lines between a seed's iterations, and only where all its seeds have some.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from lightningrl.machine.durable import publish

_COLOURS = ("#1f5fa8", "#d1702a", "#2a7d4f", "#7a4fa3", "#4f8a8b", "#a3762b", "#8a3b52", "#8c98a4")
_INK, _FAINT = "#22272e", "#e4e7eb"
_POINTS = 50
"""At which a mean over seeds is taken."""


def draw(told: Mapping[str, Any], out: Path) -> None:
    """Draw training reward by sampled tokens, and each cell's score, to the PNG `out`, which is replaced whole.

    Args:
        told: see `comparison_page.told_of`.
        out: its folder is there.
    """
    figure: Any = Figure(figsize=(10.0, 4.2), layout="constrained")
    curves, scores = figure.subplots(1, 2, width_ratios=(3, 2))
    for number, method in enumerate(told["methods"]):
        cells = [one for one in told["cells"] if one["method"] == method]
        colour = _COLOURS[number % len(_COLOURS)]
        _draw_curves(curves, [one["curve"] for one in cells], colour, method)
        values = [one["score"] for one in cells]
        scores.plot(values, [number] * len(values), "o", color=colour, alpha=0.6, ms=6)
        if values:
            scores.plot([float(np.mean(values))], [number], "|", color=colour, ms=26, mew=3)
    curves.set_xlabel("sampled tokens", color=_INK)
    curves.set_ylabel("training reward", color=_INK)
    curves.set_ylim(-0.02, 1.02)
    if told["cells"]:
        curves.legend(frameon=False, fontsize=9, labelcolor=_INK)
    scores.set_yticks(range(len(told["methods"])), told["methods"])
    scores.set_ylim(len(told["methods"]) - 0.5, -0.5)
    scores.set_xlabel(f"{told['score']}: each seed, and their mean", color=_INK)
    for axes in (curves, scores):
        axes.grid(axis="y" if axes is curves else "x", color=_FAINT, lw=0.8)
        axes.set_axisbelow(True)
        axes.tick_params(length=0, colors=_INK, labelsize=9)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    draft = out.with_name(f".{out.name}.new")
    figure.savefig(draft, dpi=140, format="png", facecolor="white")
    publish(draft, out)


def mean_curve(curves: Sequence[Sequence[Sequence[float]]]) -> tuple[list[float], list[float]]:
    """A method's mean training reward over its seeds, by sampled tokens.

    Args:
        curves: by seed, (tokens so far, reward) of each iteration that had a reward. Empty ones count for nothing.

    Returns:
        Tokens and means, between the most that a seed had sampled after its first iteration and the fewest that one had
        after its last. Empty where there is no curve, or no such stretch.
    """
    found = [np.asarray(one, dtype=float).T for one in curves if len(one)]
    if not found:
        return [], []
    begin, end = max(one[0, 0] for one in found), min(one[0, -1] for one in found)
    if begin > end:
        return [], []
    at = np.linspace(begin, end, _POINTS)
    return at.tolist(), np.mean([np.interp(at, one[0], one[1]) for one in found], axis=0).tolist()


def _draw_curves(
    axes: Any, curves: Sequence[Sequence[Sequence[float]]], colour: str, label: str
) -> None:
    for one in curves:
        axes.plot([tokens for tokens, _ in one], [reward for _, reward in one], color=colour, lw=0.7, alpha=0.35)  # fmt: skip
    tokens, means = mean_curve(curves)
    if tokens:
        axes.plot(tokens, means, color=colour, lw=2.2, label=label)
