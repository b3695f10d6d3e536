"""Guards: when the metrics of the latest iterations say that going on makes no sense.

Invariant: a pure function of the metrics' lines and the limits, so a run that was stopped stops again at the
same place, and goes on once the limit is changed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from lightningrl.errors import GuardTripped
from lightningrl.metrics import MetricLine
from lightningrl.recipe import Guards

_SOLVED = 0.5
"""Share of solved groups above which an iteration counts as solved."""


@dataclass(frozen=True)
class _Guard:
    """What a key of `guards` limits."""

    key: str
    metric: str
    side: Literal["least", "most"]
    meaning: str
    """What is probably wrong, and what to do."""
    relative: bool = False
    """The limit is a multiple of the first iteration's value."""
    normal_if_solved: bool = False
    """An iteration most of whose groups are solved doesn't count: it looks like that as well."""


_GUARDS = (
    _Guard(
        "min_entropy",
        "train/entropy",
        "least",
        "the policy hardly varies its answers, so rollouts of a task can't be told apart; lower the"
        " learning rate, or set 'optimiser.entropy_coeff'",
        normal_if_solved=True,
    ),
    _Guard(
        "min_reward_std",
        "train/reward_std",
        "least",
        "all rollouts earn about the same; the tasks are too easy or too hard, or the reward too coarse",
        normal_if_solved=True,
    ),
    _Guard(
        "max_flat_groups",
        "train/flat_groups",
        "most",
        "rollouts of one task all earn the same, and others have earned more, so no update changes"
        " anything; the policy has collapsed, or the tasks are out of its reach",
        normal_if_solved=True,
    ),
    _Guard(
        "min_tool_calls",
        "train/tool_calls_per_rollout",
        "least",
        "the agents have stopped calling their tools; look at rewards that are earned without them",
        relative=True,
    ),
    _Guard(
        "min_answer_length",
        "train/tokens_per_call",
        "least",
        "answers have become very short; look at rewards that favour them",
        relative=True,
    ),
    _Guard(
        "max_answer_length",
        "train/tokens_per_call",
        "most",
        "answers have become very long; look at them with 'lightningrl show', and limit"
        " 'sampling.train.max_tokens'",
        relative=True,
    ),
    _Guard(
        "max_ppo_kl",
        "actor/ppo_kl",
        "most",
        "single updates move the policy too far; lower the learning rate or the number of steps",
    ),
    _Guard(
        "max_kl",
        "actor/kl",
        "most",
        "the policy has left its initial weights far behind; raise 'optimiser.kl_coeff'",
    ),
    _Guard(
        "max_ratio",
        "actor/ratio_max",
        "most",
        "some tokens' probabilities change by orders of magnitude within an update; lower the learning"
        " rate or the number of steps",
    ),
    _Guard(
        "max_log_prob_gap",
        "actor/log_prob_gap",
        "most",
        "engine and trainer disagree on what was sampled; check the engine's precision, or set"
        " 'algorithm.importance'",
    ),
    _Guard(
        "min_merged_share",
        "drift/merged_share",
        "least",
        "conversations no longer continue token by token; 'drift.json' has examples",
    ),
)


@dataclass(frozen=True)
class Reading:
    """How near a guard is to stopping the run."""

    key: str
    """Of the recipe's `guards`."""
    metric: str
    side: Literal["least", "most"]
    """Which side of `bound` is allowed."""
    bound: float
    """What the metric is compared with: the limit, or its multiple of the first iteration's value."""
    value: float | None
    """In the last trained iteration. `None`: the guard passes it."""
    beyond: int
    """How many of the last iterations, without a gap, were beyond the bound; at `patience` the run stops."""
    patience: int
    meaning: str
    """What is probably wrong where it stops a run, and what to do."""

    @property
    def nearness(self) -> float | None:
        """0 far from the bound, 1 at it, more beyond. `None`: there is no value."""
        if self.value is None:
            return None
        if self.side == "most":
            return abs(self.value) / self.bound if self.bound else float(self.value != 0)
        return self.bound / self.value if self.value > 0 else float(self.bound > 0)


def guard_readings(lines: Sequence[MetricLine], guards: Guards) -> list[Reading]:
    """Each guard that is set and whose metric the last iteration has, by policy where policies have one each.

    Args:
        lines: the run's, in order, iteration 0 included; no trained iteration gives an empty list.
        guards: the recipe's.
    """
    trained = [line for line in lines if line["iteration"] > 0]
    if not trained:
        return []
    found: list[Reading] = []
    for guard in _GUARDS:
        limit: float | None = getattr(guards, guard.key)
        for name in () if limit is None else _names(guard.metric, trained[-1]):
            assert limit is not None
            bound = _bound(guard, limit, trained[0], name)
            if bound is None:
                continue
            beyond = 0
            while beyond < len(trained) and _beyond(
                guard, _value(guard, trained[-1 - beyond], name), bound
            ):
                beyond += 1
            value = _value(guard, trained[-1], name)
            found.append(
                Reading(
                    guard.key,
                    name,
                    guard.side,
                    bound,
                    value,
                    beyond,
                    guards.patience,
                    guard.meaning,
                )
            )
    return found


def check_guards(lines: Sequence[MetricLine], guards: Guards) -> None:
    """Stop if the last iterations are beyond a limit.

    Args:
        lines: the run's, in order, iteration 0 included.
        guards: the recipe's. Where a metric is missing in one of the last `patience` trained iterations,
            or in the first one that a limit is relative to, the guard passes.

    Raises:
        GuardTripped: with the metric's values, the limit, what it may mean, and how to go on.
    """
    trained = [line for line in lines if line["iteration"] > 0]
    latest = trained[-guards.patience :]
    if len(latest) < guards.patience:
        return
    for guard in _GUARDS:
        limit: float | None = getattr(guards, guard.key)
        if limit is None:
            continue
        for name in _names(guard.metric, latest[-1]):
            bound = _bound(guard, limit, trained[0], name)
            values = [_value(guard, line, name) for line in latest]
            if bound is not None and all(_beyond(guard, value, bound) for value in values):
                raise GuardTripped(_explain(guard, name, values, limit, latest[-1]["iteration"]))


def _bound(guard: _Guard, limit: float, first: MetricLine, name: str) -> float | None:
    """What a metric is compared with. `None`: it is relative to a value that was 0 or missing."""
    if not guard.relative:
        return limit
    bound = limit * (first.get(name) or 0.0)
    return bound if bound > 0 else None


def _value(guard: _Guard, line: MetricLine, name: str) -> float | None:
    """What the guard judges; `None` where it passes this iteration."""
    solved = (line.get("train/solved_groups") or 0.0) > _SOLVED
    return None if guard.normal_if_solved and solved else line.get(name)


def _names(metric: str, line: MetricLine) -> list[str]:
    """The metric, or where policies have one each, theirs."""
    group, _, rest = metric.partition("/")
    return [
        name
        for name in line
        if name == metric or (name.startswith(f"{group}/") and name.endswith(f"/{rest}"))
    ]


def _beyond(guard: _Guard, value: float | None, bound: float) -> bool:
    if value is None:
        return False
    return value < bound if guard.side == "least" else abs(value) > bound


def _explain(
    guard: _Guard, name: str, values: Sequence[float | None], limit: float, iteration: int
) -> str:
    shown = ", ".join(f"{value:.4g}" for value in values if value is not None)
    of = " of the first iteration's" if guard.relative else ""
    return (
        f"stopped after iteration {iteration}: {name} was {shown} in the last {len(values)} iterations;"
        f" 'guards.{guard.key}' allows at {guard.side} {limit:g}{of}. Probably {guard.meaning}. The run's"
        f" state is whole: the same command with guards.{guard.key}=null (or another limit) goes on"
    )
