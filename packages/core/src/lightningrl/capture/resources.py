"""What an algorithm tunes, as the agent reads it.

Invariant: within a rollout the agent gets the version that its rollout is pinned to, for as long as it
runs; outside of one it gets the default that it names, so that the same file runs in production.
"""

from __future__ import annotations

from typing import Any, Final

from lightningrl.capture.context import current
from lightningrl.errors import AgentError


class _NoDefault:
    """Says that no default was given."""


_NO_DEFAULT: Final = _NoDefault()


def resource(name: str, default: Any = _NO_DEFAULT) -> Any:
    """The value of a named resource, such as a prompt template.

    Args:
        name: as the algorithm put it in the store.
        default: what to use outside a rollout, and in one that is not pinned to such a resource.

    Raises:
        AgentError: there is no value and no default.
    """
    context = current()
    if context is not None and name in context.resources:
        return context.resources[name]
    if not isinstance(default, _NoDefault):
        return default
    where = "outside a rollout" if context is None else f"in rollout {context.rollout_id!r}"
    raise AgentError(
        f"there is no resource {name!r} {where}; pin the rollout to a version of it when it is"
        " enqueued, or give resource() a default"
    )
