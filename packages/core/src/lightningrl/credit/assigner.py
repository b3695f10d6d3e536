"""How a credit assigner looks, is found by name, and is checked."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from lightningrl.credit.broadcast import broadcast
from lightningrl.errors import ConfigError, RunError
from lightningrl.nearest import suggest
from lightningrl.objects import load_object
from lightningrl.transition import Group

CreditAssigner = Callable[..., list[list[list[float]]]]
"""`(groups, **params) -> credit`: `credit[g][i][t]` is the final advantage of
`groups[g].traces[i].transitions[t]`. Nothing normalises it again."""

_SHIPPED: dict[str, CreditAssigner] = {"broadcast": broadcast}


def find_assigner(
    name: str, params: Mapping[str, Any], *, folder: Path | None = None
) -> CreditAssigner:
    """The assigner that a recipe names, once its parameters are known to fit.

    Args:
        name: a shipped method's, an entry point's, or `module:function`.
        params: the keyword arguments that it will be called with.
        folder: the recipe's, where its own modules are.

    Raises:
        ConfigError: there is none of that name, or it doesn't take one of `params`.
    """
    assigner = _SHIPPED.get(name)
    if assigner is None:
        found = {entry.name: entry for entry in entry_points(group="lightningrl.credit")}
        if name in found:
            assigner = found[name].load()
        elif ":" in name:
            assigner = load_object(name, what="algorithm.credit", folder=folder)
        else:
            valid = [*_SHIPPED, *found]
            raise ConfigError(
                f"algorithm.credit: no credit assigner {name!r}.{suggest(name, valid)}"
            )
    assert assigner is not None
    _check_params(name, assigner, params)
    return assigner


def assign(
    assigner: CreditAssigner, groups: Sequence[Group], params: Mapping[str, Any]
) -> list[list[list[float]]]:
    """Call an assigner and check what it returns.

    Raises:
        RunError: the credit isn't aligned with the transitions, or isn't finite.
    """
    credit = assigner(list(groups), **params)
    name = getattr(assigner, "__qualname__", repr(assigner))
    if len(credit) != len(groups):
        raise RunError(f"credit assigner {name}: {len(credit)} results for {len(groups)} groups")
    for group, credit_G in zip(groups, credit, strict=True):
        shape = [len(trace.transitions) for trace in group.traces]
        if [len(credit_T) for credit_T in credit_G] != shape:
            raise RunError(
                f"credit assigner {name}: group {group.group_id!r} has transitions {shape}, the"
                f" credit {[len(credit_T) for credit_T in credit_G]}; they must be aligned"
            )
        if not all(math.isfinite(value) for credit_T in credit_G for value in credit_T):
            raise RunError(
                f"credit assigner {name}: group {group.group_id!r} has a NaN or infinity"
            )
    return credit


def _check_params(name: str, assigner: CreditAssigner, params: Mapping[str, Any]) -> None:
    accepted = inspect.signature(assigner).parameters
    if any(one.kind is inspect.Parameter.VAR_KEYWORD for one in accepted.values()):
        return
    valid = list(accepted)[1:]
    for key in params:
        if key not in valid:
            raise ConfigError(
                f"algorithm.credit_args: {name!r} takes no {key!r}.{suggest(key, valid)}"
            )
