"""A whole run as one file: what the store holds of it, for keeping, moving and reading.

Invariants:
- Loaded into an empty store, the file gives the same reads as the store that it came from.
- A file that broke off, or is of another version, is refused and named; nothing is guessed.

`records.py` says what is in it and in which order, whatever the format: JSON lines (`json_lines.py`), as small as
the store and read without any library, or Parquet (`parquet.py`), for analysis, which needs
`lightningrl[parquet]`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator
from pathlib import Path
from types import ModuleType

from lightningrl.archive import json_lines
from lightningrl.archive.records import Loader, records_of
from lightningrl.errors import ConfigError
from lightningrl.schema import Rollout
from lightningrl.store.base import Store

SUFFIXES = (".jsonl", ".parquet")
"""What a run's file may be called; the suffix says the format that is written."""

_PARQUET_MAGIC = b"PAR1"


async def export_run(store: Store, run: str, path: Path) -> int:
    """Write a run's file, in the format of its suffix; return how many rollouts it has.

    It appears at `path` when it is whole, in the place of a former one. An unknown run gives a file without
    rollouts.

    Raises:
        ConfigError: the suffix is none of `SUFFIXES`, or pyarrow is not installed.
    """
    if path.suffix not in SUFFIXES:
        names = " or ".join(SUFFIXES)
        raise ConfigError(f"{str(path)!r} must end in {names}, which says the format")
    file_format = _parquet() if path.suffix == ".parquet" else json_lines
    count = 0
    with whole_file(path) as partial, file_format.writing(partial, run) as write:
        async for record in records_of(store, run):
            write(record)
            count += isinstance(record, Rollout)
    return count


async def import_run(store: Store, path: Path) -> tuple[str, int]:
    """Load a run's file, of either format, into `store`; return the run and how many records were new there.

    What is there already is passed over, so an import that broke off is done again from the start.

    Raises:
        ConfigError: there is no such file, it is none of ours, of another version, or not whole, or pyarrow
            is not installed.
        Conflict: the store has one of its records, and that differs.
    """
    file_format = _parquet() if _begins_as_parquet(path) else json_lines
    run, records = file_format.reading(path)
    loader = Loader(store)
    for record in records:
        await loader.add(record)
    return run, await loader.end()


def _parquet() -> ModuleType:
    try:
        # pyarrow is loaded, and needed, by those who ask for it.
        from lightningrl.archive import parquet
    except ImportError as error:
        raise ConfigError(
            f"Parquet files need pyarrow ({error}); install lightningrl[parquet], or use .jsonl"
        ) from error
    return parquet


def _begins_as_parquet(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(len(_PARQUET_MAGIC)) == _PARQUET_MAGIC
    except OSError as error:
        raise ConfigError(f"can't read {str(path)!r}: {error.strerror}") from error


@contextlib.contextmanager
def whole_file(path: Path) -> Generator[Path]:
    """A path to write at; what is there appears at `path` if all went well, and else is removed."""
    partial = path.with_name(f".{path.name}.part")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
