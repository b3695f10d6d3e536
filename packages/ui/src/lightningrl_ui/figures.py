"""Charts, as plotly's JavaScript takes them: plain values. Colours that depend on light and dark are the page's.

Invariant: every point is a number of `metrics.jsonl`, or a mean of such numbers whose name says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lightningrl.metrics import MetricLine, series
from lightningrl_ui.views.compare import AXES, Band, Curve
from lightningrl_ui.views.run import phase_metrics, phase_name

Figure = dict[str, Any]
"""`data`, `layout` and `name`, the name of a file that it is saved in."""

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f7f7f", "#b8a800")
"""Told apart by people of any colour vision (Okabe and Ito, 2008; yellow made darker)."""
DASHES = ("solid", "dash", "dot", "dashdot")

_FEW = 12
"""Iterations each of which has its tick."""

_REWARDS = (
    ("train/reward", "training", "#7f7f7f", "lines+markers", "solid"),
    ("val/reward", "validation, greedy", "#0072b2", "lines+markers", "solid"),
    ("val/reward_sampled", "validation, sampled", "#d55e00", "lines+markers", "dash"),
    ("test/reward", "test", "#009e73", "markers", "solid"),
    ("sft/loss", "trained on", "#7f7f7f", "lines", "solid"),
    ("sft/val_loss", "held out", "#0072b2", "lines+markers", "solid"),
)


def _axis(title: str, **more: Any) -> dict[str, Any]:
    return {"title": {"text": title, "standoff": 10}, "automargin": True, **more}


def _figure(name: str, data: list[Any], height: int = 340, **layout: Any) -> Figure:
    return {
        "name": name,
        "data": data,
        "layout": {
            "height": height,
            "margin": {"l": 60, "r": 20, "t": 72, "b": 50},
            "hovermode": "x unified",
            "legend": {"orientation": "h", "y": 1.0, "yanchor": "bottom"},
            **layout,
        },
    }


def reward_figure(name: str, lines: Sequence[MetricLine]) -> Figure | None:
    """Reward by iteration, or of a fine-tuning the loss. `None`: there is none yet."""
    data: list[Any] = []
    what = "mean reward"
    for metric, label, colour, mode, dash in _REWARDS:
        x, y = series(lines, metric)
        if not x or (data and metric.startswith("sft/") and what == "mean reward"):
            continue
        if metric.startswith("sft/"):
            what = "loss, nats per token"
        trace: dict[str, Any] = {
            "x": x,
            "y": y,
            "name": label,
            "mode": mode,
            "line": {"color": colour, "dash": dash},
        }
        size = 12 if mode == "markers" else 6
        trace["marker"] = {
            "color": colour,
            "size": size,
            "symbol": "star" if size == 12 else "circle",
        }
        data.append(trace)
    if not data:
        return None
    return _figure(f"{name}-reward", data, xaxis=_iterations(lines), yaxis=_axis(what))


_PARTS = (
    ("train/part/", "training", "solid"),
    ("val/part/", "validation, greedy", "dash"),
    ("val/part_sampled/", "validation, sampled", "dot"),
    ("test/part/", "test", "dashdot"),
)


def parts_figure(name: str, lines: Sequence[MetricLine]) -> Figure | None:
    """The named parts of the reward by iteration, as `format` and `accuracy`. `None`: it has none."""
    found = {metric for line in lines for metric in line}
    names = sorted({m.removeprefix(p) for p, _, _ in _PARTS for m in found if m.startswith(p)})
    data: list[Any] = []
    for place, part in enumerate(names):
        colour = COLOURS[place % len(COLOURS)]
        for prefix, of, dash in _PARTS:
            x, y = series(lines, prefix + part)
            if x:
                line = {"color": colour, "dash": dash}
                data.append({"x": x, "y": y, "name": f"{part}, {of}", "mode": "lines+markers",
                             "line": line, "marker": {"color": colour, "size": 6}})  # fmt: skip
    if not data:
        return None
    across, up = _iterations(lines), _axis("mean of the reward's part")
    return _figure(f"{name}-parts", data, xaxis=across, yaxis=up)


def _iterations(lines: Sequence[MetricLine], **more: Any) -> dict[str, Any]:
    """An axis of iterations: no fractions of one, which few iterations would be given."""
    few = {"dtick": 1} if lines and lines[-1]["iteration"] <= _FEW else {}
    return _axis("iteration", **few, **more)


def time_figure(name: str, lines: Sequence[MetricLine]) -> Figure | None:
    """Seconds of each phase by iteration, stacked. `None`: there are none yet."""
    data: list[Any] = []
    for place, metric in enumerate(phase_metrics(lines)):
        x, y = series(lines, metric)
        if x:
            bar = {"x": x, "y": y, "name": phase_name(metric), "type": "bar"}
            data.append({**bar, "marker": {"color": COLOURS[place % len(COLOURS)]}})
    if not data:
        return None
    across, up = _iterations(lines), _axis("seconds")
    return _figure(f"{name}-time", data, barmode="stack", xaxis=across, yaxis=up)


def metrics_figure(name: str, lines: Sequence[MetricLine], metrics: Sequence[str]) -> Figure | None:
    """Metrics one below the other, over one axis of iterations. `None`: none has a value."""
    shown = [(metric, series(lines, metric)) for metric in metrics]
    shown = [(metric, points) for metric, points in shown if points[0]]
    if not shown:
        return None
    data: list[Any] = []
    layout: dict[str, Any] = {"xaxis": _iterations(lines, anchor=_y(len(shown) - 1))}
    share = 1 / len(shown)
    for place, (metric, (x, y)) in enumerate(shown):
        colour = COLOURS[place % len(COLOURS)]
        data.append(
            {"x": x, "y": y, "name": metric, "mode": "lines+markers", "yaxis": _y(place),
             "line": {"color": colour}, "marker": {"color": colour, "size": 6}}
        )  # fmt: skip
        top = 1 - place * share
        domain = [max(0.0, top - share * 0.86), top]
        layout["yaxis" + _y(place)[1:]] = _axis(unit_of(metric), domain=domain)
    return _figure(f"{name}-metrics", data, 140 + 200 * len(shown), **layout)


def _y(place: int) -> str:
    return "y" if place == 0 else f"y{place + 1}"


_UNITS: Mapping[str, str] = {
    "_seconds": "seconds",
    "entropy": "nats",
    "kl": "nats",
    "log_prob_gap": "nats",
    "log_prob_gap_max": "nats",
    "max_abs_difference": "nats",
    "loss": "loss",
    "_share": "share",
    "overhead": "share",
    "clipfrac": "share",
    "_groups": "share",
    "ratio_max": "ratio",
    "tool_calls_per_rollout": "calls",
    "tokens": "tokens",
    "tokens_per_call": "tokens",
    "rollouts": "rollouts",
    "groups": "groups",
    "rows": "rows",
    "reward": "reward",
}


def unit_of(metric: str) -> str:
    """In what a metric is measured, as its name tells; empty where it doesn't."""
    ends = [end for end in _UNITS if metric.endswith(end)]
    return _UNITS[max(ends, key=len)] if ends else ""


def compare_figure(
    metric: str, axis: str, curves: Sequence[Curve], bands: Sequence[Band]
) -> Figure | None:
    """A metric of several runs; over seeds the mean, from the least to the most. `None`: none has it."""
    if not curves:
        return None
    data: list[Any] = []
    for place, one in enumerate(curves):
        colour = COLOURS[place % len(COLOURS)]
        line = {"color": colour, "dash": DASHES[place // len(COLOURS) % len(DASHES)]}
        faint = 0.45 if bands else 1.0
        data.append(
            {"x": one.x, "y": one.y, "name": one.label, "mode": "lines+markers", "line": line,
             "marker": {"color": colour, "size": 6}, "opacity": faint}
        )  # fmt: skip
    for place, band in enumerate(bands):
        colour = COLOURS[(place + len(curves)) % len(COLOURS)]
        edge = {"x": band.x, "mode": "lines", "line": {"width": 0}, "hoverinfo": "skip"}
        data.append({**edge, "y": band.least, "showlegend": False})
        data.append(
            {
                **edge,
                "y": band.most,
                "showlegend": False,
                "fill": "tonexty",
                "fillcolor": f"{colour}33",
            }
        )
        line = {"color": colour, "width": 3}
        data.append(
            {"x": band.x, "y": band.mean, "name": band.label, "mode": "lines", "line": line}
        )
    unit = unit_of(metric)
    title = metric if metric.endswith(unit) else f"{metric}, {unit}"
    axes = {"xaxis": _axis(AXES[axis]), "yaxis": _axis(title)}
    return _figure(f"compare-{metric.replace('/', '-')}", data, 460, **axes)
