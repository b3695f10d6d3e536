"""How a call of the store travels over HTTP: read off the contract's type hints, method by method.

`POST /store/v1/{method}` carries a msgpack map of keyword arguments; the answer is the map
`{"ok": result}` or `{"error": {"code", "message"}}`, where `code` names a class of `errors`. Bodies
above 4 KiB are compressed with zstd. Server and client share this table, so each method of the
contract stands once.
"""

from __future__ import annotations

import inspect
import typing
from typing import Any

import msgspec

from lightningrl.store.base import Store

PREFIX = "/store/v1/"

COMPRESS_ABOVE_BYTES = 4096

BODY_LIMIT_BYTES = 64 << 20
"""Longest body that the server takes, before and after decompression."""

REQUEST_ID_HEADER = "x-lightningrl-request"
"""Chosen by the client, the same for each repetition of a call whose answer got lost."""

ONCE = frozenset({"enqueue", "claim", "cancel", "extend"})
"""Methods whose repetition would give another answer or have its effect twice, although the arguments
are equal. The server remembers the answers to these by request id. After a restart of the server it
doesn't know them any more; then a claim that got lost ends with its lease."""


class WireError(msgspec.Struct, frozen=True):
    """An error of ours on the wire."""

    code: str
    message: str


class Method:
    """One method of the contract."""

    def __init__(self, name: str, function: Any) -> None:
        self.name = name
        hints = typing.get_type_hints(function)
        parameters = list(inspect.signature(function).parameters.values())[1:]
        fields = [
            (one.name, hints[one.name])
            if one.default is inspect.Parameter.empty
            else (one.name, hints[one.name], one.default)
            for one in parameters
        ]
        arguments = msgspec.defstruct(f"{name}_arguments", fields, forbid_unknown_fields=True)
        self._names = [one.name for one in parameters]
        self._arguments: msgspec.msgpack.Decoder[Any] = msgspec.msgpack.Decoder(arguments)
        answer = msgspec.defstruct(
            f"{name}_answer",
            [
                ("ok", hints["return"] | msgspec.UnsetType, msgspec.UNSET),
                ("error", WireError | None, None),
            ],
        )
        self.answer: msgspec.msgpack.Decoder[Any] = msgspec.msgpack.Decoder(answer)
        """Decodes a struct with `ok` and `error`."""
        self.waits = "wait_seconds" in self._names
        """Whether a call may take as long as it asks for."""

    def arguments(self, body: bytes) -> dict[str, Any]:
        """The keyword arguments in `body`.

        Raises:
            msgspec.DecodeError: it is no msgpack, or doesn't fit the contract.
        """
        decoded = self._arguments.decode(body)
        return {name: getattr(decoded, name) for name in self._names}


def _methods() -> dict[str, Method]:
    public = inspect.getmembers(Store, inspect.iscoroutinefunction)
    return {
        name: Method(name, function)
        for name, function in public
        if not name.startswith("_") and name != "close"
    }


METHODS: dict[str, Method] = _methods()
"""Every method of the contract but `close`, which ends a connection, not the store."""
