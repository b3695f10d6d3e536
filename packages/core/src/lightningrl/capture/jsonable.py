"""Any Python value as JSON-able data, for the inputs and outputs of steps.

Invariant: `jsonable` never raises and always terminates, and what it returns can be stored: what has no
JSON form is shown by its `repr`. Integers beyond 64 bits and texts that are no Unicode, both of which a
model may write into a tool call's arguments, are stored as texts.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, cast

import msgspec

_ENCODER = msgspec.msgpack.Encoder()


def jsonable(value: Any) -> Any:
    """Return `value` as maps with text keys, lists, texts, numbers, booleans and `None`.

    Subclasses of texts and numbers are texts and numbers, and so are numpy's numbers and tensors without dimensions.
    Pydantic models are dumped by their own rules; any other unknown object becomes its `repr`.
    """
    try:
        plain = msgspec.to_builtins(value, str_keys=True, enc_hook=_describe)
    # Cycles end in a RecursionError.
    except Exception:  # noqa: BLE001 - the user's objects may raise anything when looked at
        plain = safe_repr(value)
    try:
        _ENCODER.encode(plain)
    except (OverflowError, UnicodeEncodeError):
        return _storable(plain)
    return plain


def json_map(given: Mapping[Any, Any]) -> dict[str, Any]:
    """The same of a mapping, as a map; of one whose keys have no JSON form, a text under `task`."""
    shown = jsonable(dict(given))
    return cast("dict[str, Any]", shown) if isinstance(shown, dict) else {"task": shown}


def unicode_text(text: str) -> str:
    r"""`text` with lone surrogates, which no store can hold, written out as `\\udXXX`."""
    return text.encode("utf-8", "backslashreplace").decode()


def safe_repr(value: Any) -> str:
    """`repr(value)`, also where that raises."""
    try:
        return repr(value)
    except Exception:  # noqa: BLE001 - a user's __repr__ may raise as well
        return f"<{type(value).__name__} that can't be shown>"


def tool_arguments(given: Any) -> Any:
    """The arguments of a tool call as data; as they came where a model wrote what can't be read."""
    try:
        return json.loads(given)
    # No text, no JSON or too many digits, too deep.
    except (TypeError, ValueError, RecursionError):
        return given


def is_jsonable(value: Any) -> bool:
    """Return whether `value` has a JSON form of its own, and is stored as it is."""
    try:
        msgspec.msgpack.encode(value, enc_hook=_dump_model)
    except Exception:  # noqa: BLE001 - whatever the user's objects raise, the answer is the same
        return False
    return True


def _storable(plain: Any) -> Any:
    """`plain`, which is built-in types only, with what can't be encoded as text."""
    if isinstance(plain, dict):
        items = cast("dict[Any, Any]", plain).items()
        return {_storable(key): _storable(value) for key, value in items}
    if isinstance(plain, list | tuple):
        return [_storable(one) for one in cast("list[Any]", plain)]
    if isinstance(plain, str):
        return unicode_text(plain)
    if isinstance(plain, int) and not -(2**63) <= plain < 2**64:
        return safe_repr(plain)
    return plain


def is_scalar(value: Any) -> bool:
    """Whether it is one number of a library of arrays: numpy's scalars, and arrays and tensors without dimensions."""
    return hasattr(value, "item") and getattr(value, "shape", None) == ()


def _dump_model(value: Any) -> Any:
    # A subclass is what it is a subclass of, whatever it says of itself.
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        return int.__int__(value)
    if isinstance(value, float):
        return float.__float__(value)
    if is_scalar(value):
        return value.item()
    dump = getattr(value, "model_dump", None)
    if dump is None:
        raise NotImplementedError(f"{type(value).__name__} has no JSON form")
    return dump(mode="json")


def _describe(value: Any) -> Any:
    try:
        return _dump_model(value)
    except Exception:  # noqa: BLE001 - as above: a broken model is still shown
        return safe_repr(value)
