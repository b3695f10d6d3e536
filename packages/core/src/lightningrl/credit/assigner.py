"""How a credit assigner looks, is found by name, and is checked."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, cast

from lightningrl.credit.result import Credit
from lightningrl.credit.shipped import SHIPPED
from lightningrl.credit.stateful import Outcome, State, StatefulAssigner, Values
from lightningrl.errors import ConfigError, RunError
from lightningrl.experience.transition import Group
from lightningrl.user_input.arguments import check_arguments
from lightningrl.user_input.names import suggest
from lightningrl.user_input.references import load_object

CreditAssigner = Callable[..., list[list[list[float]]]]
"""`(groups, **params) -> credit`: `credit[g][i][t]` is the final advantage of
`groups[g].traces[i].transitions[t]`. Nothing normalises it again. Pure: no I/O, no clock, no randomness.
What it has to report it returns as a `Credit`, a list with metrics."""

_GROUP = "lightningrl.credit"

_ARGS = "algorithm.credit_args."


def find_assigner(
    name: str, params: Mapping[str, Any], *, folder: Path | None = None
) -> CreditAssigner | StatefulAssigner:
    """The assigner that a recipe names, once its parameters are known to fit.

    A `StatefulAssigner` is returned as made with `params`; a function is called with them later.

    Args:
        name: a shipped method's, an entry point's, or `module:function`.
        params: the keyword arguments that it will be called with.
        folder: the recipe's, where its own modules are.

    Raises:
        ConfigError: there is none of that name, it is neither a function nor a `StatefulAssigner`, or
            it doesn't take one of `params` or its value.
    """
    found = _find(name, folder)
    if isinstance(found, type) and issubclass(found, StatefulAssigner):
        _check_params(name, list(inspect.signature(found).parameters.values()), params)
        if name in SHIPPED:
            check_arguments(found, params, _ARGS)
        return found(**params)
    if not callable(found):
        raise ConfigError(
            f"algorithm.credit: {name!r} is {type(found).__name__}; name a function"
            " (groups, **params) -> credit, or a StatefulAssigner"
        )
    _check_params(name, list(inspect.signature(found).parameters.values())[1:], params)
    assigner = cast("CreditAssigner", found)
    if name in SHIPPED:  # the values are checked now, not when the first iteration ends
        check_arguments(assigner, params, _ARGS)
        assigner([], **params)
    return assigner


def assigner_names() -> list[str]:
    """The names that need no module: shipped methods, then those of installed packages."""
    return [*SHIPPED, *(entry.name for entry in entry_points(group=_GROUP))]


def assign(assigner: CreditAssigner, groups: Sequence[Group], params: Mapping[str, Any]) -> Credit:
    """Call an assigner and check what it returns.

    Raises:
        RunError: the credit isn't aligned with the transitions, or isn't finite.
    """
    credit = assigner(list(groups), **params)
    name = _name(assigner)
    checked = _checked(name, groups, credit, "credit")
    if isinstance(credit, Credit):
        _check_parts(name, groups, credit)
        return Credit(checked, credit.metrics, credit.unfit, credit.parts, credit.states)
    return Credit(checked)


def assign_with(
    assigner: CreditAssigner | StatefulAssigner,
    groups: Sequence[Group],
    params: Mapping[str, Any],
    *,
    state: State,
    values: Values | None = None,
    ends: Values | None = None,
) -> Outcome:
    """Call an assigner of either kind and check what it returns.

    A function is called with `params` and leaves `state` as it is; a `StatefulAssigner` has its parameters.

    Raises:
        RunError: credit or targets aren't aligned with the transitions or aren't finite, or the method
            needs values or ends and there are none.
    """
    if not isinstance(assigner, StatefulAssigner):
        return Outcome(assign(assigner, groups, params), state)
    name = _name(assigner)
    if assigner.needs_values and values is None:
        raise RunError(
            f"credit assigner {name}: it needs a critic's values, and there is no critic"
        )
    if assigner.needs_ends and ends is None:
        raise RunError(f"credit assigner {name}: it needs a critic's values behind cut answers")
    outcome = assigner.assign(list(groups), state=state, values=values, ends=ends)
    _checked(name, groups, outcome.credit, "credit")
    _check_parts(name, groups, outcome.credit)
    if outcome.targets is not None:
        _checked(name, groups, outcome.targets, "targets")
    return outcome


def _find(name: str, folder: Path | None) -> Any:
    if name in SHIPPED:
        return SHIPPED[name]
    if ":" in name:
        return load_object(name, what="algorithm.credit", folder=folder)
    for entry in entry_points(group=_GROUP):
        if entry.name == name:
            return entry.load()
    hint = suggest(name, assigner_names())
    raise ConfigError(f"algorithm.credit: no credit assigner {name!r}.{hint}")


def _name(assigner: CreditAssigner | StatefulAssigner) -> str:
    return getattr(assigner, "__qualname__", type(assigner).__qualname__)


def _checked(
    name: str, groups: Sequence[Group], found: list[list[list[float]]], what: str
) -> list[list[list[float]]]:
    _check_aligned(name, groups, found, what)
    for group, found_G in zip(groups, found, strict=True):
        if not all(math.isfinite(value) for found_T in found_G for value in found_T):
            raise RunError(
                f"credit assigner {name}: group {group.group_id!r} has a NaN or infinity in its {what}"
            )
    return found


def _check_aligned(
    name: str, groups: Sequence[Group], found: Sequence[Sequence[Sequence[Any]]], what: str
) -> None:
    if len(found) != len(groups):
        raise RunError(
            f"credit assigner {name}: {len(found)} results for {len(groups)} groups in its {what}"
        )
    for group, found_G in zip(groups, found, strict=True):
        shape = [len(trace.transitions) for trace in group.traces]
        if [len(found_T) for found_T in found_G] != shape:
            raise RunError(
                f"credit assigner {name}: group {group.group_id!r} has transitions {shape}, the"
                f" {what} {[len(found_T) for found_T in found_G]}; they must be aligned"
            )


def _check_parts(name: str, groups: Sequence[Group], credit: Credit) -> None:
    for part, numbers in credit.parts.items():
        _check_aligned(name, groups, numbers, f"part {part!r}")
    if credit.states is not None:
        _check_aligned(name, groups, credit.states, "states")


def _check_params(
    name: str, accepted: Sequence[inspect.Parameter], params: Mapping[str, Any]
) -> None:
    if any(one.kind is inspect.Parameter.VAR_KEYWORD for one in accepted):
        return
    valid = [one.name for one in accepted]
    for key in params:
        if key not in valid:
            raise ConfigError(
                f"algorithm.credit_args: {name!r} takes no {key!r}.{suggest(key, valid)}"
            )
