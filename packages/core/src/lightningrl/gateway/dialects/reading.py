"""From a request's bytes to typed fields; what is wrong with it is said in the real service's words.

Invariant: whatever the bytes, the outcome is the typed fields or a `Refusal`.
"""

from __future__ import annotations

import re
from typing import Any, NoReturn, TypeVar

import msgspec

from lightningrl.conversation.malformed import Malformed
from lightningrl.gateway.asgi import Refusal

T = TypeVar("T")

_OBJECT = msgspec.json.Decoder(dict[str, Any])
_FIELDS = msgspec.json.Decoder(dict[str, msgspec.Raw])
_MISSING = re.compile(r"missing required field `([^`]*)`")
_PATH = re.compile(r" - at `\$\.?([^`]*)`")
_TYPES = re.compile(r"Expected `([^`]*)`, got `([^`]*)`")


def decode(decoder: msgspec.json.Decoder[T], body: bytes) -> T:
    """The typed fields of a request.

    Raises:
        Refusal: 400, it is no JSON object, or a field has a wrong type.
    """
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        _refuse(str(error))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _no_json(error) from error


_ESCAPE = re.compile(
    rb"\\(?:(u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2})|(u[dD][89a-fA-F][0-9a-fA-F]{2})|.)",
    re.DOTALL,
)
"""An escape of JSON: of a whole character in two halves, of half a character, or any other."""


def without_halves(body: bytes) -> bytes:
    """JSON whose escaped halves of characters, which are no text, are U+FFFD.

    Models write them, and Python's `json` reads and writes them.
    """
    if b"\\ud" not in body and b"\\uD" not in body:
        return body
    return _ESCAPE.sub(lambda found: rb"\ufffd" if found[2] else found[0], body)


def raw_fields(body: bytes) -> dict[str, msgspec.Raw]:
    """The top-level fields, undecoded, of a body that is UTF-8 throughout.

    Raises:
        Refusal: 400, it is no JSON object.
    """
    try:
        body.decode()  # undecoded fields are stored as they are: they must be UTF-8, too
    except UnicodeDecodeError as error:
        raise _no_json(error) from error
    return decode(_FIELDS, body)


def decoded_fields(body: bytes) -> dict[str, Any]:
    """The top-level fields, decoded.

    Raises:
        Refusal: 400, it is no JSON object.
    """
    return decode(_OBJECT, body)


def refusal_of(error: Malformed) -> Refusal:
    """The refusal of a request whose conversation can't be read."""
    return Refusal(error.status, error.code, error.message, param=error.param)


def _no_json(error: Exception) -> Refusal:
    return Refusal(400, "invalid_json", f"the request body is not JSON: {error}")


_IN_JSON = {"str": "string", "int": "integer", "float": "number", "bool": "boolean"}


def _in_json(types: str) -> str:
    """Python's names of types (`float | null`) as JSON has them."""
    return " or ".join(_IN_JSON.get(one, one) for one in types.split(" | "))


def _refuse(message: str) -> NoReturn:
    """Refuse with what msgspec found, put as OpenAI puts it."""
    found = _PATH.search(message)
    path = (found.group(1) if found else "").replace("[...]", "[]")
    if lacking := _MISSING.search(message):
        param = f"{path}.{lacking.group(1)}".lstrip(".")
        code, text = "missing_required_parameter", f"Missing required parameter: '{param}'."
    elif types := _TYPES.search(message):
        param = path
        code = "invalid_type"
        expected, got = (_in_json(one) for one in types.groups())
        where = f" for '{param}'" if param else ""
        text = f"Invalid type{where}: expected {expected}, but got {got} instead."
    else:
        param, code, text = path, "invalid_value", f"the request is not valid: {message}"
    raise Refusal(400, code, text, param=param or None)
