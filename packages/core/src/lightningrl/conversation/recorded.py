"""Requests that steps keep themselves, whole again. Pure.

Invariant: a request that continues another one has that one's first messages, and then its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

MESSAGES = "messages"
CONTINUES = "continues"
"""Key of a request: the step whose first messages it repeats and leaves out."""
KEPT = "kept"
"""Key of a request: how many messages those are."""


def whole_requests(requests: Mapping[str, Any]) -> dict[str, Any]:
    """Step id -> its request with all its messages.

    Args:
        requests: step id -> `inputs` of each `llm` step of one attempt, in any order. One that continues a
            step that is not among them keeps its own messages and says whose it lacks.
    """
    whole: dict[str, Any] = {}
    for step_id in requests:
        chain: dict[str, None] = {}  # from a request to those that it continues
        one: str | None = step_id
        while one is not None and one in requests and one not in whole and one not in chain:
            chain[one] = None
            one = continued(requests[one])
        for each in reversed(chain):
            whole[each] = _whole(requests[each], whole)
    return {step_id: whole[step_id] for step_id in requests}


def continued(request: Any) -> str | None:
    """The step whose messages a request leaves out. `None`: it is whole."""
    if not isinstance(request, Mapping) or KEPT not in request:
        return None
    base = cast("Mapping[str, Any]", request).get(CONTINUES)
    return base if isinstance(base, str) else None


def _whole(request: Any, whole: Mapping[str, Any]) -> Any:
    base = continued(request)
    earlier = whole.get(base) if base is not None else None
    messages = cast("Mapping[str, Any]", earlier).get(MESSAGES) if earlier is not None else None
    if not isinstance(messages, list):
        return request
    first = cast("list[Any]", messages)[: request[KEPT]]
    rest = {key: value for key, value in request.items() if key not in {CONTINUES, KEPT}}
    return {**rest, MESSAGES: [*first, *request[MESSAGES]]}
