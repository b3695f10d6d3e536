"""Any Python value as JSON-able data, for the inputs and outputs of steps.

Invariant: `jsonable` never raises and always terminates; what has no JSON form is shown by its `repr`.
"""

from __future__ import annotations

from typing import Any

import msgspec

_PLAIN = (str, int, bool, type(None))


def jsonable(value: Any) -> Any:
    """Return `value` as maps with text keys, lists, texts, numbers, booleans and `None`.

    Pydantic models are dumped by their own rules; any other unknown object becomes its `repr`.
    """
    if isinstance(value, _PLAIN):
        return value
    try:
        return msgspec.to_builtins(value, str_keys=True, enc_hook=_describe)
    # Cycles end in a RecursionError.
    except Exception:  # noqa: BLE001 - the user's objects may raise anything when looked at
        return _safe_repr(value)


def is_jsonable(value: Any) -> bool:
    """Return whether `value` has a JSON form of its own, without falling back to a `repr`."""
    try:
        msgspec.json.encode(value, enc_hook=_dump_model)
    except Exception:  # noqa: BLE001 - whatever the user's objects raise, the answer is the same
        return False
    return True


def _dump_model(value: Any) -> Any:
    dump = getattr(value, "model_dump", None)
    if dump is None:
        raise NotImplementedError(f"{type(value).__name__} has no JSON form")
    return dump(mode="json")


def _describe(value: Any) -> Any:
    try:
        return _dump_model(value)
    except Exception:  # noqa: BLE001 - as above: a broken model is still shown
        return _safe_repr(value)


def _safe_repr(value: Any) -> str:
    try:
        return repr(value)
    except Exception:  # noqa: BLE001 - a user's __repr__ may raise as well
        return f"<{type(value).__name__} that can't be shown>"
