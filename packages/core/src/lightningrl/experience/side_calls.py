"""Calls that a harness makes beside the task: titles, probes, summaries.

Invariant: a call is judged by the request that the agent sent, whatever its dialect, and by nothing else.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import msgspec

from lightningrl.recipe import SideCall
from lightningrl.schema import CallEvent

_LIMITS = ("max_tokens", "max_completion_tokens", "max_output_tokens")
"""How the dialects name the longest answer."""
_TEXTS = ("system", "instructions", "messages", "input", "prompt")
"""Where the dialects keep what the model reads."""


def is_side_call(call: CallEvent, rules: Sequence[SideCall]) -> bool:
    """Whether a call fits one of the rules, which were checked."""
    return bool(rules) and is_side_request(msgspec.json.decode(call.request), rules)


def is_side_request(request: Mapping[str, Any], rules: Sequence[SideCall]) -> bool:
    """Whether a call with this request fits one of the rules, which were checked."""
    return any(_fits(request, rule) for rule in rules)


def _fits(request: Mapping[str, Any], rule: SideCall) -> bool:
    if rule.model is not None and request.get("model") != rule.model:
        return False
    if rule.max_tokens is not None:
        asked = [request.get(one) for one in _LIMITS]
        if not any(isinstance(one, int) and one <= rule.max_tokens for one in asked):
            return False
    if rule.prompt is None:
        return True
    pattern = re.compile(rule.prompt, re.MULTILINE)
    return any(pattern.search(text) for part in _TEXTS for text in _texts(request.get(part)))


def _texts(value: Any) -> Iterator[str]:
    """Every text of a request's part, that of tools and of earlier answers included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for one in cast("Mapping[str, Any]", value).values():
            yield from _texts(one)
    elif isinstance(value, list):
        for one in cast("list[Any]", value):
            yield from _texts(one)
