"""Published data sets of word problems, read from local files into the benchmark's task rows.

GSM8K (Cobbe et al. 2021, arXiv:2110.14168): JSON lines with `question` and `answer`, whose last line
is `#### 42`. Calc-X (Kadlčík et al. 2023, arXiv:2305.15017): JSON lines or Parquet with `id`,
`question`, `chain` and `result`; the chain is text with `<gadget>`, `<output>` and `<result>` tags.

Invariant: every row of the file becomes one task row with `id`, `question` and `answer`, or the
call fails with a `DataError` that names file and line; nothing is skipped.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

_GSM8K_ANSWER = re.compile(r"^####\s*(.+?)\s*$", re.MULTILINE)
_GSM8K_CALCULATION = re.compile(r"<<([^<>]*)=([^<>]*)>>")
_CALCX_GADGET = re.compile(r"<gadget id=[\"']calculator[\"']>(.*?)</gadget>", re.DOTALL)


class DataError(ValueError):
    """A data file can't be read as what it is said to be."""


def load_gsm8k(path: str | Path) -> list[dict[str, Any]]:
    """Return the problems of a GSM8K file (`train.jsonl`, `test.jsonl`) as task rows.

    `calculations` lists the expressions of the answer's `<<48/2=24>>` annotations.

    Raises:
        DataError: naming file and line.
        OSError: if the file can't be read.
    """
    rows: list[dict[str, Any]] = []
    for number, record in _json_lines(Path(path)):
        place = f"{path}:{number}"
        solution = _text(record, "answer", place)
        answers = _GSM8K_ANSWER.findall(solution)
        if len(answers) != 1:
            raise DataError(f"{place}: expected one line '#### number', found {len(answers)}")
        rows.append(
            {
                "id": f"gsm8k-{Path(path).stem}-{number}",
                "question": _text(record, "question", place),
                "answer": answers[0].replace(",", ""),
                "calculations": [left for left, _ in _GSM8K_CALCULATION.findall(solution)],
            }
        )
    return rows


def load_calcx(path: str | Path) -> list[dict[str, Any]]:
    """Return the problems of a Calc-X file (`.jsonl` or `.parquet`) as task rows.

    `answer` is the field `result`, as published (large numbers are written "1_200" there, which the
    reward reads); `calculations` lists the calculator calls of the field `chain`.

    Raises:
        DataError: naming file and line (in a Parquet file the row's number, from 1), or if a
            Parquet file is given without pyarrow.
        OSError: if the file can't be read.
    """
    file = Path(path)
    records = _parquet_rows(file) if file.suffix == ".parquet" else _json_lines(file)
    return [_calcx_row(record, f"{path}:{number}") for number, record in records]


def _calcx_row(record: Mapping[str, Any], place: str) -> dict[str, Any]:
    """Return the task row of one Calc-X record."""
    return {
        "id": _text(record, "id", place),
        "question": _text(record, "question", place),
        "answer": _text(record, "result", place).strip(),
        "calculations": [
            text.strip() for text in _CALCX_GADGET.findall(_text(record, "chain", place))
        ],
    }


def _json_lines(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Yield line number (from 1) and object of each line; blank lines are allowed."""
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                record: object = json.loads(line)
            except json.JSONDecodeError as error:
                raise DataError(f"{path}:{number}: not JSON: {error}") from error
            if not isinstance(record, dict):
                raise DataError(f"{path}:{number}: expected an object, found {line.strip()[:40]!r}")
            yield number, cast("dict[str, Any]", record)


def _parquet_rows(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Yield number (from 1) and fields of each row."""
    try:
        # Only Parquet files need it, so it is no dependency of the benchmark.
        from pyarrow import parquet
    except ImportError as error:
        raise DataError(f"{path}: Parquet files need pyarrow: pip install pyarrow") from error
    table: Any = parquet.read_table(path)
    yield from enumerate(table.to_pylist(), start=1)


def _text(record: Mapping[str, Any], field: str, place: str) -> str:
    """Return a field that must be non-empty text."""
    value = record.get(field)
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{place}: field {field!r} must be text, found {value!r}")
    return value
