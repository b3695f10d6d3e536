"""Folders in the form of Spider and BIRD become task rows."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from lightningrl_bench_sql.loaders import DataError, load_bird, load_spider
from lightningrl_bench_sql.reward import execution_match

Write = Callable[[object], Path]
QUESTION = {
    "db_id": "pets",
    "question": "How many dogs?",
    "query": "SELECT count(*) FROM Dog ORDER BY 1",
}


@pytest.fixture
def databases(tmp_path: Path) -> Path:
    """One database, with another of its test suite beside it."""
    folder = tmp_path / "database"
    (folder / "pets").mkdir(parents=True)
    for name, dogs in (("pets", 2), ("petsv1", 3)):
        with closing(sqlite3.connect(folder / "pets" / f"{name}.sqlite")) as connection:
            connection.executescript(
                "CREATE TABLE Dog (id INTEGER, name TEXT);"
                + "INSERT INTO Dog VALUES (1, 'rex');" * dogs
            )
    return folder


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def to_file(content: object) -> Path:
        path = tmp_path / "dev.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content), "utf-8")
        return path

    return to_file


def test_a_question_of_spider_is_scored_on_its_test_suite(databases: Path, write: Write) -> None:
    (row,) = load_spider(write([QUESTION, QUESTION]), databases, limit=1)
    assert row == {
        "id": "spider-dev-0",
        "question": "How many dogs?",
        "schema": "Dog (id, name)",
        "database": str(databases / "pets" / "pets.sqlite"),
        "hidden": [str(databases / "pets" / "petsv1.sqlite")],
        "query": QUESTION["query"],
        "ordered": True,
        "match": "spider",
    }
    assert execution_match(row, "SELECT COUNT(id) FROM Dog", None) == 1
    assert execution_match(row, "SELECT 2", None) == 0


def test_a_question_of_bird_has_its_evidence_as_a_hint(databases: Path, write: Write) -> None:
    record = {
        "question_id": 17,
        "db_id": "pets",
        "question": "Who is there?",
        "evidence": "who refers to name",
        "SQL": "SELECT name FROM Dog",
        "difficulty": "simple",
    }
    hinted, plain = load_bird(write([record, {**record, "evidence": ""}]), databases)
    assert hinted["id"] == "bird-dev-17"
    assert hinted["question"] == "Who is there? Hint: who refers to name"
    assert plain["question"] == "Who is there?"
    assert (hinted["match"], hinted["ordered"]) == ("bird", False)
    assert execution_match(hinted, "SELECT DISTINCT name FROM Dog", None) == 1


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("[", r"dev.json: not JSON"),
        ({}, r"dev.json: expected a list of objects, found dict"),
        ([3], r"dev.json\[0\]: expected an object, found 3"),
        ([{**QUESTION, "question": " "}], r"dev.json\[0\]: field 'question' must be text"),
        ([QUESTION, {**QUESTION, "query": None}], r"dev.json\[1\]: field 'query' must be text, found None"),
        ([{**QUESTION, "db_id": "cats"}], r"dev.json\[0\]: there is no database '.*cats.sqlite'"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named_with_its_place(
    databases: Path, write: Write, content: Any, told: str
) -> None:
    with pytest.raises(DataError, match=told):
        load_spider(write(content), databases)
