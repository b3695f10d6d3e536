"""The curve of a run, drawn from its metrics: of the reward, or of the loss where it was fine-tuned.

Invariant: every point in the picture is a number of `metrics.jsonl`; the one derived line, the
moving mean of what was trained on, says so in the legend. The file is replaced whole, never half.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightningrl.errors import ConfigError, RunError
from lightningrl.metrics import MetricLine, read_metrics, series

_TRAIN, _GREEDY, _SAMPLED, _TEST = "#8c98a4", "#1f5fa8", "#d1702a", "#2a7d4f"
_PARTS = ("#7a4fa3", "#4f8a8b", "#a3762b", "#8a3b52")
_INK, _FAINT = "#22272e", "#e4e7eb"

_SMOOTH_FROM = 20
"""Training points from which on a moving mean is drawn; fewer are readable as they are."""


def draw_curve(metrics: Path, out: Path, title: str) -> None:
    """Draw reward by iteration to the PNG `out`: training, validation and test; of a fine-tuning the losses.

    What validation gave in iteration 0, before any update, is marked as the base.

    Raises:
        ConfigError: matplotlib is missing, or there are no metrics.
        RunError: the metrics hold neither reward nor loss yet, or can't be read.
    """
    try:
        # Only here: matplotlib is an extra, and half a second of start-up.
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigError(
            "drawing a curve needs matplotlib: pip install 'lightningrl[plot]'"
        ) from error
    lines = read_metrics(metrics)
    figure: Any = Figure(figsize=(8.0, 4.5), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.15, h_pad=0.12)
    axes: Any = figure.add_subplot()
    drawn = [
        *_draw_train(axes, lines, "train/reward"),
        *_draw_validation(axes, lines, "val/reward_sampled", "validation, sampled", _SAMPLED, "--"),
        *_draw_validation(axes, lines, "val/reward", "validation, greedy", _GREEDY, "-"),
        *_draw_test(axes, lines),
        *_draw_parts(axes, lines),
    ]
    what, base = "mean reward", ("val/reward", "base, greedy")
    if not drawn:
        drawn = [
            *_draw_train(axes, lines, "sft/loss"),
            *_draw_validation(axes, lines, "sft/val_loss", "held out", _GREEDY, "-"),
        ]
        what, base = "loss, nats per token", ("sft/val_loss", "base, held out")
    if not drawn:
        raise RunError(f"{str(metrics)!r} holds no reward yet; draw it after the first iteration")
    _draw_base(axes, lines, *base)
    _finish(axes, title, what, drawn)
    partial = out.with_name(f".{out.name}.{os.getpid()}.part")
    figure.savefig(partial, dpi=160, format="png", facecolor="white")
    partial.replace(out)


def _draw_train(axes: Any, lines: Sequence[MetricLine], name: str) -> list[float]:
    iterations, rewards = series(lines, name)
    if not rewards:
        return []
    smooth = len(rewards) >= _SMOOTH_FROM
    label = "training" if not smooth else None
    width, alpha = (0.9, 0.45) if smooth else (1.5, 1.0)
    marker = "." if len(rewards) < 3 else None  # a line through one point is invisible
    axes.plot(
        iterations,
        rewards,
        color=_TRAIN,
        lw=width,
        alpha=alpha,
        label=label,
        marker=marker,
        zorder=2,
    )
    if smooth:
        window = max(5, len(rewards) // 15) | 1
        axes.plot(
            iterations,
            _moving_mean(rewards, window),
            color=_TRAIN,
            lw=2.0,
            label=f"training, mean of {window} iterations",
            zorder=3,
        )
    return rewards


def _draw_validation(
    axes: Any, lines: Sequence[MetricLine], name: str, label: str, colour: str, style: str
) -> list[float]:
    iterations, rewards = series(lines, name)
    if rewards:
        axes.plot(
            iterations,
            rewards,
            style,
            color=colour,
            lw=2.0,
            marker="o",
            markersize=5.0,
            markeredgecolor="white",
            markeredgewidth=1.0,
            label=f"{label}: {rewards[-1]:.3f}",
            zorder=4,
        )
    return rewards


def _draw_parts(axes: Any, lines: Sequence[MetricLine]) -> list[float]:
    """What stands beside the sampled reward of validation, thin: names that reward functions gave."""
    prefix = "val/part_sampled/"
    names = sorted({name for line in lines for name in line if name.startswith(prefix)})
    drawn: list[float] = []
    for number, name in enumerate(names):
        iterations, values = series(lines, name)
        label = f"of it {name.removeprefix(prefix)}: {values[-1]:.3f}"
        colour = _PARTS[number % len(_PARTS)]
        axes.plot(iterations, values, ":", color=colour, lw=1.3, marker=".", label=label, zorder=3)
        drawn += values
    return drawn


def _draw_test(axes: Any, lines: Sequence[MetricLine]) -> list[float]:
    iterations, rewards = series(lines, "test/reward")
    if rewards:
        axes.plot(
            iterations,
            rewards,
            linestyle="none",
            marker="*",
            markersize=17.0,
            markerfacecolor="none",  # it often lies on the last validation point
            markeredgecolor=_TEST,
            markeredgewidth=1.8,
            label=f"test: {rewards[-1]:.3f}",
            zorder=6,
            clip_on=False,
        )
    return rewards


def _draw_base(axes: Any, lines: Sequence[MetricLine], name: str, label: str) -> None:
    """A horizontal line at what validation gave before any update."""
    iterations, rewards = series(lines, name)
    if not iterations or iterations[0] != 0:
        return
    axes.axhline(
        rewards[0],
        color=_INK,
        lw=1.0,
        ls=(0, (1, 3)),
        label=f"{label}: {rewards[0]:.3f}",
        zorder=1,
    )


def _moving_mean(values: Sequence[float], window: int) -> list[float]:
    """The mean of up to `window` values around each, fewer at the two ends."""
    half = window // 2
    means: list[float] = []
    for index in range(len(values)):
        near = values[max(0, index - half) : index + half + 1]
        means.append(sum(near) / len(near))
    return means


def _finish(axes: Any, title: str, what: str, drawn: Sequence[float]) -> None:
    # Imported here for the same reason as in `draw_curve`, which has checked that it is there.
    from matplotlib.ticker import MaxNLocator

    if min(drawn) >= 0.0:  # an axis that begins at 0 shows how large the gain really is
        top = 1.0 if 0.5 < max(drawn) <= 1.0 else 1.15 * max(drawn) or 1.0
        axes.set_ylim(-0.02 * top, 1.02 * top)
    first, last = axes.get_xlim()
    axes.set_xlim(min(first, -0.02), max(last, 1.02))
    axes.set_title(title, loc="left", fontsize=13, fontweight="bold", color=_INK, pad=12)
    axes.set_xlabel("iteration", color=_INK)
    axes.set_ylabel(what, color=_INK)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    axes.grid(axis="y", color=_FAINT, lw=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, colors=_INK, labelsize=9)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(_TRAIN)
    axes.legend(frameon=False, fontsize=9, labelcolor=_INK, loc="best")
