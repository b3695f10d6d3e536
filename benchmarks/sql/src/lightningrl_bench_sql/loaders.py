"""Published data sets, read from local folders into the benchmark's task rows.

Spider (Yu et al. 2018, arXiv:1809.08887): a JSON list with `db_id`, `question` and `query` (`train_spider.json`,
`dev.json`), and `DATABASES/DB_ID/DB_ID.sqlite`. Where the folder is that of the test suites (arXiv:2010.02840), further
`.sqlite` files lie beside it; they become the hidden databases. BIRD (Li et al. 2023, arXiv:2305.03111): the same with `SQL`
for `query`, `evidence` beside the question, `question_id` and `difficulty`.

Nothing is downloaded. A row is checked for its fields and its database; its query is not run.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, cast

from lightningrl_bench_sql.database import schema_of


class DataError(ValueError):
    """A data file can't be read as what it is said to be."""


def load_spider(
    questions: str | Path, databases: str | Path, limit: int | None = None
) -> list[dict[str, Any]]:
    """Return the questions of a Spider file as task rows, to be scored as its test suites are.

    Raises:
        DataError: naming file and item (from 0).
        OSError: a file can't be read.
    """
    return [
        {
            "id": f"spider-{Path(questions).stem}-{number}",
            "question": _text(record, "question", place),
            **_database(record, Path(databases), place),
            **_wanted(_text(record, "query", place)),
            "match": "spider",
        }
        for number, (place, record) in enumerate(_records(Path(questions), limit))
    ]


def load_bird(
    questions: str | Path, databases: str | Path, limit: int | None = None
) -> list[dict[str, Any]]:
    """Return the questions of a BIRD file as task rows, each with its evidence as a hint.

    Raises:
        DataError: naming file and item (from 0).
        OSError: a file can't be read.
    """
    rows: list[dict[str, Any]] = []
    for number, (place, record) in enumerate(_records(Path(questions), limit)):
        question, hint = _text(record, "question", place), record.get("evidence") or ""
        rows.append(
            {
                "id": f"bird-{Path(questions).stem}-{record.get('question_id', number)}",
                "question": f"{question} Hint: {hint}" if hint else question,
                **_database(record, Path(databases), place),
                **_wanted(_text(record, "SQL", place)),
                "match": "bird",
            }
        )
    return rows


def _records(path: Path, limit: int | None) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield place and object of each item of a JSON list."""
    try:
        items: object = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise DataError(f"{path}: not JSON: {error}") from error
    if not isinstance(items, list):
        raise DataError(f"{path}: expected a list of objects, found {type(items).__name__}")
    for number, item in enumerate(cast("list[object]", items)[:limit]):
        if not isinstance(item, dict):
            raise DataError(f"{path}[{number}]: expected an object, found {item!r:.40}")
        yield f"{path}[{number}]", cast("dict[str, Any]", item)


def _database(record: Mapping[str, Any], folder: Path, place: str) -> dict[str, Any]:
    """Return the fields of a row that say what it is about."""
    name = _text(record, "db_id", place)
    path = folder.absolute() / name / f"{name}.sqlite"
    if not path.is_file():
        raise DataError(f"{place}: there is no database {str(path)!r}")
    hidden = sorted(str(one) for one in path.parent.glob("*.sqlite") if one != path)
    return {"schema": _schema(path), "database": str(path), "hidden": hidden}


_schema = cache(schema_of)


def _wanted(query: str) -> dict[str, Any]:
    return {"query": query, "ordered": "order by" in query.lower()}


def _text(record: Mapping[str, Any], field: str, place: str) -> str:
    """Return a field that must be non-empty text."""
    value = record.get(field)
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{place}: field {field!r} must be text, found {value!r}")
    return value
