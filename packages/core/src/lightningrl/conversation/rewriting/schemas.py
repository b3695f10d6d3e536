"""JSON schemas of strangers: checked when they are asked for, and texts are judged by them.

Invariants:
- Nothing here fetches anything, and nothing keeps its thread for long, whatever a schema and a text are.
- What that takes is lenient: `UNUSED` keywords are not looked at. A text that can't be judged so is of neither form.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from contextvars import ContextVar
from copy import copy
from functools import lru_cache
from typing import Any, NamedTuple, cast

import msgspec

LONGEST_SCHEMA = 50_000
"""Bytes of JSON. No text is judged by a longer one, which is not checked either."""
CHECK_SECONDS = 0.25
"""Of a thread's own time, for checking one schema: about 20,000 bytes of it. No text is judged by what takes longer."""
LONGEST_TEXT = 100_000
"""Characters of a text that is judged."""
JUDGE_SECONDS = 0.05
"""Of a thread's own time, for judging one text. Nested references double the work with each level."""
UNUSED = ("pattern", "patternProperties", "unevaluatedProperties", "unevaluatedItems")
"""Keywords that no text is judged by, nor by `additionalProperties` beside `patternProperties`: an expression such as
`^(a+)+$` takes for ever and can't be stopped, and `unevaluated...` follows references where nobody counts the time."""

_until: ContextVar[float] = ContextVar("until")
"""When checking or judging ends, in the thread's own seconds."""

_Keyword = Callable[[Any, Any, Any, Any], Iterable[Any] | None]


class Unjudged(Exception):
    """A text can't be judged; says why."""


class _Read(NamedTuple):
    """What is known of a schema: one of these."""

    validator: Any = None
    """What judges values by it."""
    wrong: str | None = None
    """Why it is none."""
    unjudged: str | None = None
    """Why no text is judged by it."""


def check(schema: Any) -> None:
    """Refuse what is no JSON schema.

    Raises:
        ValueError: it is none, or it refers to what is elsewhere or is none.
    """
    try:
        encoded = msgspec.json.encode(schema)
    except (OverflowError, RecursionError) as error:
        raise ValueError(str(error)) from error
    if wrong := _read(encoded).wrong:
        raise ValueError(wrong)


def fault(text: str, schema: Any) -> str | None:
    """In what a text is no JSON that fits a schema, `True` of any JSON object. `None`: it fits.

    Raises:
        Unjudged: the text or the schema is too long, or judging takes too long.
        Exception: whatever `jsonschema` raises by a schema that is odd in a way that `check` does not see.
    """
    if len(text) > LONGEST_TEXT:
        raise Unjudged(f"it is longer than {LONGEST_TEXT} characters")
    try:
        value: Any = msgspec.json.decode(text)
    except (ValueError, RecursionError) as error:
        return f"no JSON ({error})"
    if schema is True:
        return None if isinstance(value, dict) else "no JSON object"
    read = _read(msgspec.json.encode(schema))
    if read.validator is None:
        raise Unjudged(read.unjudged or read.wrong)
    _until.set(time.thread_time() + JUDGE_SECONDS)
    wrong = next(read.validator.iter_errors(value), None)
    return None if wrong is None else f"{wrong.json_path}: {wrong.message:.200}"


@lru_cache(maxsize=256)
def _read(schema: bytes) -> _Read:
    if len(schema) > LONGEST_SCHEMA:
        return _Read(unjudged=f"the schema is longer than {LONGEST_SCHEMA} bytes")
    # 0.2 s of imports, for those policies alone that are asked so.
    from referencing import Registry

    decoded, validator = msgspec.json.decode(schema), _validator_class()
    _until.set(time.thread_time() + CHECK_SECONDS)
    try:
        wrong = next(validator(validator.META_SCHEMA).iter_errors(decoded), None)
        if wrong is not None:
            return _Read(wrong=f"{wrong.json_path}: {wrong.message:.200}")
        _check_references(decoded)
    except Unjudged as error:
        return _Read(unjudged=f"the schema: {error}")
    # By what the specification forbids the libraries raise KeyError, TypeError and more.
    except Exception as error:  # noqa: BLE001
        return _Read(wrong=f"{error!s:.200}")
    return _Read(validator(decoded, registry=Registry[Any]()))


def _check_references(root: Any) -> None:
    """Follow each reference that judging may follow.

    Raises:
        Unjudged: it takes too long.
        Exception: one leads nowhere, or to no schema.
    """
    from referencing import Registry
    from referencing.jsonschema import DRAFT202012

    resource = DRAFT202012.create_resource(root)
    address = resource.id() or ""
    # Crawled once; else each lookup of an anchor would do it.
    resolver = Registry[Any]().with_resource(address, resource).crawl().resolver(address)
    left, seen = [(resource, resolver)], {id(root)}
    while left:
        _in_time()
        one, inside = left.pop()
        found = [(sub, inside.in_subresource(sub)) for sub in one.subresources()]
        for reference in _references(one.contents):
            target = inside.lookup(reference)
            if not isinstance(target.contents, (dict, bool)):
                raise ValueError(f"{reference!r} leads to no schema")
            found.append((DRAFT202012.create_resource(target.contents), target.resolver))
        for entry in found:
            if id(entry[0].contents) not in seen:
                seen.add(id(entry[0].contents))
                left.append(entry)


def _references(schema: Any) -> list[str]:
    if not isinstance(schema, dict):
        return []
    keywords = cast("dict[str, Any]", schema)
    return [keywords[key] for key in ("$ref", "$dynamicRef") if key in keywords]


@lru_cache(maxsize=1)
def _validator_class() -> Any:
    from jsonschema import Draft202012Validator
    from jsonschema.validators import extend

    keywords: dict[str, _Keyword] = dict(Draft202012Validator.VALIDATORS)
    keywords["uniqueItems"] = _unique_items
    keywords["additionalProperties"] = _without_patterns(keywords["additionalProperties"])
    found: Any = extend(
        Draft202012Validator,
        {name: _timed(keyword) for name, keyword in keywords.items()}
        | dict.fromkeys(UNUSED, _unused),
    )
    found.evolve = _evolved
    return found


def _evolved(validator: Any, **changes: Any) -> Any:
    """As `jsonschema` does it, but the class stays where a schema names another by `$schema`: that one knows no time."""
    evolved = copy(validator)
    for name, value in changes.items():
        setattr(evolved, name, value)
    return evolved


def _timed(keyword: _Keyword) -> _Keyword:
    """The keyword, while there is time."""

    def judge(validator: Any, value: Any, instance: Any, schema: Any) -> Iterable[Any] | None:
        _in_time()
        return keyword(validator, value, instance, schema)

    return judge


def _in_time() -> None:
    if time.thread_time() > _until.get():
        raise Unjudged("it takes too long")


def _unused(validator: Any, value: Any, instance: Any, schema: Any) -> None:
    del validator, value, instance, schema


def _without_patterns(keyword: _Keyword) -> _Keyword:
    """`additionalProperties`, which matches names by the patterns beside it."""

    def judge(validator: Any, value: Any, instance: Any, schema: Any) -> Iterable[Any] | None:
        if "patternProperties" in schema:
            return None
        return keyword(validator, value, instance, schema)

    return judge


def _unique_items(validator: Any, value: Any, instance: Any, schema: Any) -> Iterable[Any]:
    """`uniqueItems` in linear time, where 1 and 1.0 are two: `jsonschema` compares each with each."""
    from jsonschema import ValidationError

    del validator, schema
    if value and isinstance(instance, list):
        items = cast("list[Any]", instance)
        if len({msgspec.json.encode(one, order="deterministic") for one in items}) < len(items):
            yield ValidationError(f"{items!r} has non-unique elements")
