"""A user's function that says which calls are trained: `policies.NAME.train_when`.

Invariant: it is asked where experience is read, never while a call is answered, and once for a call and look: who reads a
call twice is told the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from lightningrl.errors import ConfigError, RunError
from lightningrl.recipe import PolicyRecipe
from lightningrl.schema import CallEvent, EventId
from lightningrl.user_input.references import load_object

Function = Callable[[dict[str, Any]], object]
"""Of the request as the agent sent it: whether the call is trained."""


class TrainWhen:
    """The function, and what it said of calls."""

    def __init__(self, function: Function, named: str) -> None:
        """Take the function; `named` says in errors which it is."""
        self._function = function
        self._named = named
        self._said: dict[EventId, bool] = {}

    def trains(self, call: CallEvent) -> bool:
        """Whether the call is trained.

        Raises:
            RunError: the function raised, or answered something else than True or False.
        """
        if call.id not in self._said:
            self._said[call.id] = self.trains_request(
                msgspec.json.decode(call.request), f"call {call.id!r}"
            )
        return self._said[call.id]

    def trains_request(self, request: Mapping[str, Any], whose: str) -> bool:
        """Whether a call with this request is trained; `whose` it is stands in errors.

        Raises:
            RunError: see `trains`.
        """
        try:
            said = self._function(dict(request))
        except Exception as error:
            raise RunError(
                f"{self._named} failed at the request of {whose}: {type(error).__name__}: {error}"
            ) from error
        if not isinstance(said, bool):
            raise RunError(
                f"{self._named} said {said!r} of the request of {whose}; it must return True (train it) or False"
            )
        return said


def load_train_when(
    policies: Mapping[str, PolicyRecipe], folder: Path | None = None
) -> dict[str, TrainWhen]:
    """The functions of the policies that name one, by alias.

    Args:
        policies: the recipe's.
        folder: put first on the import path. `None`: it was by an earlier call.

    Raises:
        ConfigError: one can't be found, or is no function.
    """
    found: dict[str, TrainWhen] = {}
    for alias, policy in policies.items():
        if policy.train_when is None:
            continue
        key = f"policies.{alias}.train_when"
        function = load_object(policy.train_when, what=key, folder=folder)
        if not callable(function):
            raise ConfigError(f"{key}: {policy.train_when!r} is no function of a request")
        found[alias] = TrainWhen(function, f"{key} ({policy.train_when})")
    return found
