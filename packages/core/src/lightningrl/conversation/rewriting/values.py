"""Values that say nothing are left out, since engines differ in which they refuse, and template variables are set.

Invariant: what is left out changes no answer of an engine that takes it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from lightningrl.conversation.malformed import Malformed
from lightningrl.conversation.rewriting.fields import Fields, raw

VARIABLES = "chat_template_kwargs"
"""The field that has variables of the chat template (vLLM)."""
_CHOICE = "tool_choice"
_NULL = b"null"
_IDLE_CHOICES = frozenset({b'"auto"', b'"none"'})


def idle(fields: Fields) -> list[str]:
    """The names of the fields that say nothing.

    Raises:
        Malformed: a tool must be chosen, and there is none.
    """
    found = ["stop"] if "stop" in fields and _is_blank(fields["stop"]) else []
    tools = fields.get("tools")
    if tools is not None and not _is_null(tools):
        if not _is_empty_list(tools):
            return found
        found.append("tools")
    if _CHOICE in fields and not _is_null(fields[_CHOICE]):
        if bytes(fields[_CHOICE]) not in _IDLE_CHOICES:
            raise Malformed(
                "'tool_choice' is only allowed when 'tools' are specified.", param=_CHOICE
            )
        found.append(_CHOICE)
    if "parallel_tool_calls" in fields:
        found.append("parallel_tool_calls")
    return found


def without(fields: Fields, names: Sequence[str]) -> Fields:
    """The request without the fields that say nothing."""
    return {name: value for name, value in fields.items() if name not in names}


def unset(fields: Fields, variables: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the chat template's variables that a request does not set; none where it can't be read what it sets."""
    given = _variables(fields)
    if given is None:
        return {}
    return {name: value for name, value in variables.items() if name not in given}


def with_variables(fields: Fields, variables: Mapping[str, Any]) -> Fields:
    """The request with these variables of the chat template, beside its own."""
    return {**fields, VARIABLES: raw({**variables, **(_variables(fields) or {})})}


def _variables(fields: Fields) -> dict[str, Any] | None:
    """`None`: it is no object, which the engine refuses."""
    try:
        return _OBJECT.decode(fields[VARIABLES]) or {} if VARIABLES in fields else {}
    except (msgspec.DecodeError, RecursionError):
        return None


_OBJECT: msgspec.json.Decoder[dict[str, Any] | None] = msgspec.json.Decoder(dict[str, Any] | None)


def _is_null(value: msgspec.Raw) -> bool:
    return bytes(value) == _NULL


def _is_empty_list(value: msgspec.Raw) -> bool:
    text = bytes(value)
    return text[:1] == b"[" and not text[1:-1].strip()


def _is_blank(stop: msgspec.Raw) -> bool:
    """Whether it is no text, or empty ones alone."""
    return _BLANK.fullmatch(bytes(stop)) is not None


_BLANK = re.compile(rb'""|\[\s*(?:""\s*(?:,\s*""\s*)*)?\]')
