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
        requests: step id -> `inputs` of each `llm` step of one attempt, in order of their start. One that
            continues a step that is not among them keeps its own messages and says whose it lacks.
    """
    whole: dict[str, Any] = {}
    for step_id, request in requests.items():
        whole[step_id] = request
        if isinstance(request, Mapping) and CONTINUES in request:
            given = cast("Mapping[str, Any]", request)
            base = whole.get(given[CONTINUES])
            earlier = cast("Mapping[str, Any]", base).get(MESSAGES) if base is not None else None
            if isinstance(earlier, list):
                rest = {key: value for key, value in given.items() if key not in {CONTINUES, KEPT}}
                first = cast("list[Any]", earlier)[: given[KEPT]]
                whole[step_id] = {**rest, MESSAGES: [*first, *given[MESSAGES]]}
    return whole
