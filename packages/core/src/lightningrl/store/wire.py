"""How a call of the store travels over HTTP: read off the contract's type hints, method by method.

`POST /store/v1/{method}` carries a msgpack map of keyword arguments; the answer is the map
`{"ok": result}` or `{"error": {"code", "message"}}`, where `code` names a class of `errors`. Bodies
above 32 KiB are compressed with zstd. Server and client share this table, so each method of the
contract stands once.
"""

from __future__ import annotations

import functools
import inspect
import typing
import uuid
from importlib.metadata import version
from typing import Any

import msgspec

from lightningrl.store.arguments import UNKEEPABLE, refused
from lightningrl.store.base import Store
from lightningrl.store.compression import Compressor

PREFIX = "/store/v1/"

COMPRESS_ABOVE_BYTES = 32 << 10
"""Below this the server takes longer to decompress a body than a network of 1 Gbit/s to carry it."""

BODY_LIMIT_BYTES = 64 << 20
"""Longest body that the server takes, before and after decompression."""

REQUEST_ID_HEADER = "x-lightningrl-request"
"""Chosen by the client, the same for each repetition of a call whose answer got lost."""

VERSION_HEADER = "x-lightningrl-version"
"""The client's version of LightningRL, which the server compares with its own."""

ONCE = frozenset(
    {
        *("enqueue", "claim", "cancel", "retry", "extend", "expire", "roll_back", "put_resource"),
        *("delete_rollouts", "delete_run", "retain", "load"),
    }
)
"""Methods whose repetition would give another answer or have its effect twice, although the arguments
are equal. The server remembers the answers to these by request id. After a restart of the server it
doesn't know them any more; then a claim that got lost ends with its lease."""


_encoder = msgspec.msgpack.Encoder()


def packed_call(
    name: str, arguments: dict[str, Any], compressor: Compressor
) -> tuple[bytes, dict[str, str]]:
    """The body and the headers of one call of the method `name`.

    A call that is repeated is the same body with the same headers.

    Raises:
        ConfigError: `arguments` hold what no store can hold.
    """
    try:
        body = _encoder.encode(arguments)
    except UNKEEPABLE as error:
        raise refused(error) from error
    headers = {
        "content-type": "application/msgpack",
        "accept-encoding": "zstd",
        VERSION_HEADER: own_version(),
    }
    if len(body) > COMPRESS_ABOVE_BYTES:
        body = compressor.pack(body)
        headers["content-encoding"] = "zstd"
    if name in ONCE:
        headers[REQUEST_ID_HEADER] = uuid.uuid4().hex
    return body, headers


@functools.cache
def own_version() -> str:
    """Of LightningRL, as it is installed."""
    return version("lightningrl")


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
