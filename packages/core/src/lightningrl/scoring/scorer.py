"""Applies a recipe's step rewards to groups: finds the rules, weighs their values, adds them to steps."""

from __future__ import annotations

import inspect
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from numbers import Real
from pathlib import Path

from msgspec import structs

from lightningrl.errors import ConfigError, RunError
from lightningrl.experience.transition import Group, Trace
from lightningrl.recipe import StepReward
from lightningrl.schema import StepId
from lightningrl.scoring.judge import Judge
from lightningrl.scoring.rules import RULES, Rule, Values
from lightningrl.user_input.arguments import check_arguments
from lightningrl.user_input.names import suggest
from lightningrl.user_input.references import load_object

JUDGE = "judge"
"""The rule that asks a model, and the folder of its answers within a run's."""


@dataclass(frozen=True)
class Scored:
    """Groups with their step rewards."""

    groups: list[Group]
    """Equal to those given, but for the rewards of steps."""
    metrics: dict[str, float]
    """Per rule, under its name of `metric_names`, the mean of its values, and as `NAME_missing` the share of
    model calls without one."""


def metric_names(rewards: Sequence[StepReward]) -> list[str]:
    """A name for each: its rule's, and from the second of the same rule on with a number, `format_2`."""
    seen: Counter[str] = Counter()
    names: list[str] = []
    for one in rewards:
        seen[one.rule] += 1
        names.append(one.rule if seen[one.rule] == 1 else f"{one.rule}_{seen[one.rule]}")
    return names


@dataclass(frozen=True)
class _Part:
    name: str
    weight: float
    source: Rule | Judge


class Scorer:
    """The step rewards of one recipe."""

    def __init__(
        self, rewards: Sequence[StepReward], *, run_folder: Path, folder: Path | None = None
    ) -> None:
        """Find what the recipe names.

        Args:
            rewards: `step_rewards`; none leave groups as they are.
            run_folder: where the folder of judges' answers is.
            folder: the recipe's, where its own modules are.

        Raises:
            ConfigError: there is no such rule, or it doesn't take one of its arguments or its value.
        """
        self._parts = [
            _Part(name, one.weight, _source(one, cache=run_folder / JUDGE, folder=folder))
            for name, one in zip(metric_names(rewards), rewards, strict=True)
        ]

    async def score(self, groups: Sequence[Group]) -> Scored:
        """The groups with the rules' values added to the rewards of their steps.

        Raises:
            RunError: a rule failed, or its values aren't aligned with the transitions or aren't finite numbers.
        """
        traces = [trace for group in groups for trace in group.traces]
        totals: list[dict[int, float]] = [{} for _ in traces]
        metrics: dict[str, float] = {}
        for part in self._parts:
            values = await _values(part, traces)
            metrics |= _metrics(part.name, traces, values)
            for total, given, trace in zip(totals, values, traces, strict=True):
                _add(total, part.weight, given, trace)
        scored = iter(_rewarded(*pair) for pair in zip(traces, totals, strict=True))
        return Scored(
            [replace(group, traces=tuple(next(scored) for _ in group.traces)) for group in groups],
            metrics,
        )


def _source(reward: StepReward, *, cache: Path, folder: Path | None) -> Rule | Judge:
    if reward.rule == JUDGE:
        return Judge(reward.args, cache)
    if ":" in reward.rule:
        rule: Rule = load_object(reward.rule, what="step_rewards", folder=folder)
    elif reward.rule in RULES:
        rule = RULES[reward.rule]
    else:
        hint = suggest(reward.rule, [*RULES, JUDGE])
        raise ConfigError(f"step_rewards: no rule {reward.rule!r}.{hint}")
    signature = inspect.signature(rule)
    try:
        signature.bind(None, **reward.args)
    except TypeError as error:
        takes = suggest("", list(signature.parameters)[1:]) or " It takes no arguments."
        raise ConfigError(f"step_rewards: {reward.rule!r}: {error}.{takes}") from error
    if reward.rule in RULES:
        check_arguments(rule, reward.args, f"step_rewards: {reward.rule}: ")
    if reward.rule == "format":
        _check_pattern(reward.args["pattern"])
    return partial(rule, **reward.args)


def _check_pattern(pattern: str) -> None:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ConfigError(
            f"step_rewards: format: pattern {pattern!r} is no regular expression: {error}"
        ) from error


async def _values(part: _Part, traces: Sequence[Trace]) -> list[Values]:
    if isinstance(part.source, Judge):
        return await part.source.values(traces)
    return [_of_rule(part.name, part.source, trace) for trace in traces]


def _of_rule(name: str, rule: Rule, trace: Trace) -> Values:
    where = f"step_rewards: rule {name!r}, rollout {trace.rollout.id!r}"
    try:
        values = list(rule(trace))
    except Exception as error:
        raise RunError(f"{where}: it failed with {type(error).__name__}: {error}") from error
    if len(values) != len(trace.transitions):
        raise RunError(
            f"{where}: it gave {len(values)} values for the {len(trace.transitions)} transitions; it must"
            " give one each, None where it has nothing to say"
        )
    for value in values:
        if value is not None and not (isinstance(value, Real) and math.isfinite(value)):
            raise RunError(f"{where}: it gave {value!r}, which is no finite number")
    return values


def _add(total: dict[int, float], weight: float, values: Values, trace: Trace) -> None:
    """Add weighted values per transition; a tool's count for the call that asked for it as well."""
    places: Mapping[StepId, int] = {one.step_id: t for t, one in enumerate(trace.transitions)}
    for place, (one, value) in enumerate(zip(trace.transitions, values, strict=True)):
        if value is None:
            continue
        asker = places.get(one.asked_by) if one.asked_by is not None else None
        for rewarded in (place, asker):
            if rewarded is not None:
                total[rewarded] = total.get(rewarded, 0.0) + weight * value


def _rewarded(trace: Trace, total: Mapping[int, float]) -> Trace:
    if not total:
        return trace
    return replace(
        trace,
        transitions=tuple(
            structs.replace(one, reward=(one.reward or 0.0) + total[place])
            if place in total
            else one
            for place, one in enumerate(trace.transitions)
        ),
    )


def _metrics(name: str, traces: Sequence[Trace], values: Sequence[Values]) -> dict[str, float]:
    given = [value for values_T in values for value in values_T if value is not None]
    calls = [
        value
        for trace, values_T in zip(traces, values, strict=True)
        for one, value in zip(trace.transitions, values_T, strict=True)
        if one.call is not None
    ]
    missing = sum(value is None for value in calls) / len(calls) if calls else 0.0
    mean = {name: sum(given) / len(given)} if given else {}
    return {**mean, f"{name}_missing": missing}
