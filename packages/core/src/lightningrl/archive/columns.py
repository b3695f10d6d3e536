"""Records as columns of Arrow, by the types of their fields, and back.

Invariant: `column.values(column.array(values)) == values`, to the bit. What the columns are follows from
the records themselves: a field that a record gains is a field of its column.

| field | column |
|---|---|
| `prompt_ids`, `token_ids` | list of int32 |
| `logprobs` | list of float32 |
| a record | struct; a tuple of them a list of structs |
| text, enum | string |
| instant | timestamp in microseconds, UTC |
| a dict, or anything that JSON can be | its JSON as string |
| other bytes | binary |
| `X | None` | that of X, with nulls |
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise
from typing import Any, Protocol

import msgspec
import numpy as np
import pyarrow as pa
from msgspec import inspect

from lightningrl.errors import ConfigError
from lightningrl.store.rows import instant, micros

_NUMBERS = {"prompt_ids": np.int32, "token_ids": np.int32, "logprobs": np.float32}
"""Fields of bytes that are little-endian arrays."""


class Column(Protocol):
    """How the values of one field stand in a column."""

    type: pa.DataType

    def array(self, values: Sequence[Any]) -> pa.Array:
        """The column of `values`, of which some may be None.

        Raises:
            ConfigError: one can't stand in it.
        """
        ...

    def values(self, array: pa.Array) -> list[Any]:
        """What `array` was given."""
        ...


class Plain:
    """One value of Arrow each."""

    def __init__(
        self, type_: pa.DataType, put: Callable[[Any], Any] | None, get: Callable[[Any], Any] | None
    ) -> None:
        """`put` and `get` turn what is not None into what Arrow takes, and back; None: it is the same."""
        self.type = type_
        self._put = put
        self._get = get

    def array(self, values: Sequence[Any]) -> pa.Array:
        """See `Column.array`."""
        try:
            return pa.array(_each(self._put, values), type=self.type)
        except (pa.ArrowInvalid, OverflowError, UnicodeEncodeError) as error:
            raise ConfigError(f"a value can't be written as {self.type}: {error}") from error

    def values(self, array: pa.Array) -> list[Any]:
        """See `Column.values`."""
        plain = array.cast(pa.int64()) if pa.types.is_timestamp(array.type) else array
        return _each(self._get, plain.to_pylist())


class Numbers:
    """A little-endian array each."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._wire = np.dtype(_NUMBERS[name]).newbyteorder("<")
        self._native = np.dtype(_NUMBERS[name])
        self.type = pa.list_(pa.from_numpy_dtype(self._native))

    def array(self, values: Sequence[bytes]) -> pa.Array:
        """See `Column.array`; none is None."""
        width = self._wire.itemsize
        if any(len(one) % width for one in values):
            raise ConfigError(
                f"{self._name!r} of a call is no whole number of {self._native.name}s; the store was"
                " written by something else than this LightningRL"
            )
        ends = accumulate((len(one) // width for one in values), initial=0)
        flat = np.frombuffer(b"".join(values), self._wire).astype(self._native, copy=False)
        return pa.ListArray.from_arrays(pa.array(ends, pa.int32()), pa.array(flat))

    def values(self, array: pa.Array) -> list[bytes]:
        """See `Column.values`."""
        ends = array.offsets.to_numpy()
        flat = array.values.to_numpy(zero_copy_only=False).astype(self._wire, copy=False)
        return [flat[start:end].tobytes() for start, end in pairwise(ends)]


class Tuples:
    """A tuple each."""

    def __init__(self, item: Column) -> None:
        self._item = item
        self.type = pa.list_(item.type)

    def array(self, values: Sequence[tuple[Any, ...]]) -> pa.Array:
        """See `Column.array`; none is None."""
        ends = accumulate((len(one) for one in values), initial=0)
        items = self._item.array([each for one in values for each in one])
        return pa.ListArray.from_arrays(pa.array(ends, pa.int32()), items)

    def values(self, array: pa.Array) -> list[tuple[Any, ...]]:
        """See `Column.values`."""
        ends = array.offsets.to_numpy()
        items = self._item.values(array.values)
        return [tuple(items[start:end]) for start, end in pairwise(ends)]


class Structs:
    """A record each."""

    def __init__(self, record: type[msgspec.Struct]) -> None:
        self._record = record
        described = inspect.type_info(record)
        assert isinstance(described, inspect.StructType)
        self._fields = {one.name: _column(one.name, one.type) for one in described.fields}
        self.type = pa.struct([pa.field(name, one.type) for name, one in self._fields.items()])

    def array(self, values: Sequence[Any]) -> pa.Array:
        """See `Column.array`."""
        there = [one for one in values if one is not None]
        fields = [
            column.array([getattr(one, name) for one in there])
            for name, column in self._fields.items()
        ]
        array = pa.StructArray.from_arrays(fields, fields=list(self.type))
        return (
            array if len(there) == len(values) else spread(array, [v is not None for v in values])
        )

    def values(self, array: pa.Array) -> list[Any]:
        """See `Column.values`; a field that the array lacks has its default."""
        if array.null_count:
            there = iter(self.values(array.drop_null()))
            return [next(there) if valid else None for valid in array.is_valid().to_pylist()]
        names = [name for name in self._fields if array.type.get_field_index(name) >= 0]
        columns = [self._fields[name].values(array.field(name)) for name in names]
        return [
            self._record(**dict(zip(names, row, strict=True))) for row in zip(*columns, strict=True)
        ]


def spread(array: pa.Array, there: Sequence[bool]) -> pa.Array:
    """`array`, whose values come where `there` is true; elsewhere nulls."""
    places = iter(range(len(array)))
    return array.take(pa.array([next(places) if one else None for one in there], pa.int64()))


def _each(turn: Callable[[Any], Any] | None, values: Sequence[Any]) -> list[Any]:
    if turn is None:
        return list(values)
    return [None if one is None else turn(one) for one in values]


def _as_json(value: Any) -> str:
    return msgspec.json.encode(value).decode()


_PLAIN: dict[type[inspect.Type], Callable[[], Plain]] = {
    inspect.StrType: lambda: Plain(pa.string(), None, None),
    inspect.IntType: lambda: Plain(pa.int64(), None, None),
    inspect.FloatType: lambda: Plain(pa.float64(), None, None),
    inspect.BoolType: lambda: Plain(pa.bool_(), None, None),
    inspect.BytesType: lambda: Plain(pa.binary(), None, None),
    inspect.DateTimeType: lambda: Plain(pa.timestamp("us", tz="UTC"), micros, instant),
    inspect.DictType: lambda: Plain(pa.string(), _as_json, msgspec.json.decode),
    inspect.AnyType: lambda: Plain(pa.string(), _as_json, msgspec.json.decode),
}


def _column(name: str, type_: inspect.Type) -> Column:
    if isinstance(type_, inspect.UnionType):
        (type_,) = (one for one in type_.types if not isinstance(one, inspect.NoneType))
    if isinstance(type_, inspect.StructType):
        return Structs(type_.cls)
    if isinstance(type_, inspect.VarTupleType):
        return Tuples(_column(name, type_.item_type))
    if isinstance(type_, inspect.EnumType):
        return _enum(type_.cls)
    if isinstance(type_, inspect.BytesType) and name in _NUMBERS:
        return Numbers(name)
    return _PLAIN[type(type_)]()


def _enum(cls: type[enum.Enum]) -> Plain:
    return Plain(pa.string(), lambda one: one.value, cls)
