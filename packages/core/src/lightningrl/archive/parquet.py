"""A run's file as Parquet: one row a record, for pandas, Polars, DuckDB and their like.

Column `record` says what a row is; the column of that name holds it, as a struct, and the others are null. Calls stand
whole, each with all of its prompt's ids: what repeats is left to the compression.

Invariant: whatever the run's size, about one row group is in memory.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any, get_args

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from lightningrl.archive import records
from lightningrl.archive.columns import Structs, spread
from lightningrl.archive.records import Completed, DatedAttempt, Header, Record
from lightningrl.errors import ConfigError
from lightningrl.schema import Event, Resource, Rollout
from lightningrl.store.base import LedgerEntry

_ROW_GROUP_BYTES = 16 << 20
"""Of records, before they are encoded and compressed."""

_READ_ROWS = 512
"""Rows that are turned into records at once."""

_HEADER = b"lightningrl"
"""The key of the file's metadata under which the header stands, as JSON."""

_KINDS: dict[str, type[Any]] = {
    "resource": Resource,
    "rollout": Rollout,
    "attempt": DatedAttempt,
    **{str(event.__struct_config__.tag): event for event in get_args(Event)},
    "completed": Completed,
    "ledger": LedgerEntry,
}
_NAMES = {cls: name for name, cls in _KINDS.items()}
_COLUMNS = {name: Structs(cls) for name, cls in _KINDS.items()}
_SCHEMA = pa.schema(
    [
        pa.field("record", pa.string(), nullable=False),
        *(pa.field(name, column.type) for name, column in _COLUMNS.items()),
    ]
)


@contextlib.contextmanager
def writing(path: Path, run: str) -> Generator[Callable[[Record], None]]:
    """What writes a record of `run` to the file at `path`, which is whole when the body has ended."""
    header = {_HEADER: msgspec.json.encode(records.header_of(run))}
    # A dictionary would hide from zstd that a prompt begins as the one before it.
    numbers = [leaf for leaf in _leaves("", _SCHEMA) if leaf.endswith(".list.element")]
    words: Any = [
        leaf for leaf in _leaves("", _SCHEMA) if leaf not in numbers
    ]  # or a bool, for all
    with pq.ParquetWriter(
        path, _SCHEMA.with_metadata(header), compression="zstd", use_dictionary=words
    ) as file:
        group = _Group(file)
        yield group.add
        group.flush()


def _leaves(prefix: str, fields: Any) -> Iterator[str]:
    """The paths of the values in a file with `fields`."""
    for field in fields:
        yield from _leaves_of(f"{prefix}{field.name}", field.type)


def _leaves_of(path: str, type_: pa.DataType) -> Iterator[str]:
    if pa.types.is_struct(type_):
        yield from _leaves(f"{path}.", type_)
    elif pa.types.is_list(type_):
        yield from _leaves_of(f"{path}.list.element", type_.value_type)
    else:
        yield path


class _Group:
    """The records of one row group."""

    def __init__(self, file: pq.ParquetWriter) -> None:
        self._file = file
        self._records: list[Record] = []
        self._bytes = 0

    def add(self, record: Record) -> None:
        self._records.append(record)
        self._bytes += len(msgspec.msgpack.encode(record))
        if self._bytes >= _ROW_GROUP_BYTES:
            self.flush()

    def flush(self) -> None:
        if self._records:
            self._file.write_batch(_batch(self._records))
        self._records, self._bytes = [], 0


def _batch(group: list[Record]) -> pa.RecordBatch:
    names = [_NAMES[type(record)] for record in group]
    columns = [
        spread(
            column.array([one for one, its in zip(group, names, strict=True) if its == name]),
            [its == name for its in names],
        )
        for name, column in _COLUMNS.items()
    ]
    return pa.RecordBatch.from_arrays([pa.array(names, pa.string()), *columns], schema=_SCHEMA)


def reading(path: Path) -> tuple[str, Iterator[Record]]:
    """The run of the file at `path`, and its records.

    Raises:
        ConfigError: it is none of ours, of another version, or not whole.
    """
    try:
        with pq.ParquetFile(path) as file:
            metadata = file.schema_arrow.metadata or {}
    except pa.ArrowInvalid as error:
        raise ConfigError(f"{str(path)!r} is not whole, or no Parquet file: {error}") from error
    header = metadata.get(_HEADER)
    run = records.check_header(header and msgspec.json.decode(header, type=Header), path)
    return run, _records(path)


def _records(path: Path) -> Iterator[Record]:
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=_READ_ROWS):
            names = batch.column("record").to_pylist()
            kinds = {
                name: iter(_COLUMNS[name].values(batch.column(name).drop_null()))
                for name in dict.fromkeys(names)
            }
            for name in names:
                yield next(kinds[name])
