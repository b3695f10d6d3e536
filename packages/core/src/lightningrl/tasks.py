"""Tasks: the rows of one split, read from where the recipe's `data` says.

Invariant: a split has at least one task, each task is a JSON object, and no two have the same id;
else loading raises a `ConfigError` that names the split and the row.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, cast

import msgspec

from lightningrl.errors import ConfigError
from lightningrl.recipe import DataSource
from lightningrl.user_input.names import suggest
from lightningrl.user_input.references import load_object


def load_tasks(source: DataSource, *, folder: Path, split: str) -> list[tuple[str, dict[str, Any]]]:
    """The tasks of one split as (task id, row), in the source's order.

    A row's task id is its `id`, a text or a whole number; a row without one gets its index in the
    source, from 0. Blank lines of a `.jsonl` file are passed over.

    Args:
        source: `data.<split>` of a recipe.
        folder: the recipe's folder, which a path in `source` is relative to.
        split: `train`, `val` or `test`, for error messages.

    Raises:
        ConfigError: the source can't be found or read, has no rows, has a row that is no JSON
            object, or has an id twice. What the user's function raises passes unchanged.
    """
    key = f"data.{split}"
    if source.limit is not None and source.limit < 1:
        raise ConfigError(f"{key}.limit: must be at least 1, not {source.limit}")
    tasks: list[tuple[str, dict[str, Any]]] = []
    places: dict[str, str] = {}
    for index, (place, row) in enumerate(read_rows(source, folder=folder, key=key)):
        task_id = _task_id(row, index, place)
        if task_id in places:
            raise ConfigError(
                f"{place}: task id {task_id!r} was used before, at {places[task_id]};"
                " give each row an 'id' of its own"
            )
        places[task_id] = place
        tasks.append((task_id, row))
    if not tasks:
        raise ConfigError(f"{key}: {source.source!r} has no rows; a split needs at least one task")
    return tasks


def read_rows(
    source: DataSource, *, folder: Path, key: str
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each of the first `source.limit` rows, with the place to name when something is wrong with it.

    Args:
        source: a `.jsonl` file, or a function that returns rows.
        folder: the recipe's.
        key: of the recipe, where the source stands; with `KEY.args` beside it.

    Raises:
        ConfigError: the source can't be found or read, or a row is no JSON object.
    """
    rows = _rows_of_file if source.source.endswith(".jsonl") else _rows_of_function
    return islice(rows(source, folder, key), source.limit)


def _rows_of_file(
    source: DataSource, folder: Path, key: str
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Place (file:line) and row of each line."""
    if source.args:
        raise ConfigError(f"{key}.args: a .jsonl file takes none; they are for 'module:function'")
    path = folder / source.source
    try:
        # Not `splitlines`: JSON texts may hold U+2028 and its like unescaped.
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{key}: can't read {str(path)!r}: {error}") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        place = f"{path}:{number}"
        try:
            row: Any = json.loads(line)
        except json.JSONDecodeError as error:
            raise ConfigError(f"{place}: not JSON: {error}") from error
        yield place, _json_object(row, place)


def _rows_of_function(
    source: DataSource, folder: Path, key: str
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Place (function, row number) and row of each row that the function returns."""
    function = load_object(source.source, what=key, folder=folder)
    if not callable(function):
        raise ConfigError(f"{key}: {source.source!r} is no function, it is {function!r:.80}")
    _check_args(function, source, key)
    rows: Any = function(**source.args)
    kind = type(rows).__name__
    if not isinstance(rows, Iterable) or isinstance(rows, str | bytes | Mapping):
        raise ConfigError(
            f"{key}: {source.source!r} must return a list of rows, it returned a {kind}"
        )
    for index, row in enumerate(cast("Iterable[Any]", rows)):
        place = f"{key}: row {index} of {source.source!r}"
        yield place, _json_object(row, place)


def _check_args(function: Any, source: DataSource, key: str) -> None:
    try:
        signature = inspect.signature(function)
    except ValueError:  # some built-ins have none; calling them says what is wrong
        return
    try:
        signature.bind(**source.args)
    except TypeError as error:
        valid = list(signature.parameters)
        unknown = next((name for name in source.args if name not in valid), None)
        hint = suggest(unknown, valid) if unknown is not None else ""
        raise ConfigError(f"{key}.args: {source.source!r}: {error}.{hint}") from error


def _json_object(row: Any, place: str) -> dict[str, Any]:
    """The row as an agent gets it after its way through the store: plain JSON values.

    Raises:
        ConfigError: it is no mapping with text keys, or has a value that JSON doesn't know.
    """
    if not isinstance(row, Mapping):
        raise ConfigError(f"{place}: a row is a JSON object, this is a {type(row).__name__}")
    names = cast("Mapping[Any, Any]", row)
    if not all(isinstance(name, str) for name in names):
        raise ConfigError(f"{place}: a row's keys are texts, not {list(names)!r:.80}")
    try:
        plain = json.loads(json.dumps(dict(names), allow_nan=False))
        msgspec.msgpack.encode(plain)  # integers beyond 64 bits, texts that are no Unicode
    except (TypeError, ValueError, OverflowError) as error:
        raise ConfigError(f"{place}: not a JSON object that can be stored: {error}") from error
    return plain


def _task_id(row: Mapping[str, Any], index: int, place: str) -> str:
    task_id = row.get("id", index)
    if isinstance(task_id, bool) or not isinstance(task_id, str | int) or task_id == "":
        raise ConfigError(f"{place}: 'id' is a text or a whole number, not {task_id!r}")
    return str(task_id)
