"""Generated questions: reproducible, fair, and with nothing in common between the splits."""

from __future__ import annotations

import json
import re
from collections import Counter
from itertools import combinations
from pathlib import Path
from typing import Any, get_args

import pytest

from lightningrl_bench_sql.baselines import score
from lightningrl_bench_sql.database import run
from lightningrl_bench_sql.questions import KINDS, WAYS, wordings
from lightningrl_bench_sql.schemas import MIXES, Split, names, numbers, schemas, words
from lightningrl_bench_sql.tasks import draw, generate

SPLITS: tuple[Split, ...] = get_args(Split)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("databases")


@pytest.fixture(scope="module")
def rows(folder: Path) -> dict[Split, list[dict[str, Any]]]:
    return {split: generate(split, 78, 7, folder=folder) for split in SPLITS}


def _without_folder(rows: list[dict[str, Any]], folder: Path) -> str:
    return json.dumps(rows).replace(str(folder), "")


def test_the_same_arguments_give_the_same_rows_and_files(folder: Path, tmp_path: Path) -> None:
    again = generate("val", 30, 7, folder=tmp_path)
    rows = generate("val", 30, 7, folder=folder)
    assert _without_folder(again, tmp_path) == _without_folder(rows, folder)
    for one, other in zip(rows, again, strict=True):
        assert Path(one["database"]).read_bytes() == Path(other["database"]).read_bytes()
    assert [row["question"] for row in generate("val", 30, 8, folder=folder)] != [
        row["question"] for row in rows
    ]
    assert generate("val", 10, 7, folder=folder) == rows[:10]


def test_no_question_about_one_database_comes_twice(
    rows: dict[Split, list[dict[str, Any]]],
) -> None:
    for split in SPLITS:
        assert len({row["id"] for row in rows[split]}) == 78
        assert len({(row["database"], row["question"]) for row in rows[split]}) == 78


def test_kinds_take_turns_and_half_of_them_need_join_group_or_nesting(folder: Path) -> None:
    for levels in ((1, 2), (1, 2, 3)):
        rows = generate("train", 52, 1, levels, folder)
        assert {row["level"] for row in rows} == set(levels)
        counts = Counter(row["kind"] for row in rows)
        assert max(counts.values()) - min(counts.values()) <= 1
        needed = [row for row in rows if re.search(r"JOIN|GROUP|\(SELECT", row["query"])]
        assert len(needed) >= len(rows) / 2


def test_both_files_answer_and_differently(rows: dict[Split, list[dict[str, Any]]]) -> None:
    for row in rows["test"]:
        visible, hidden = (run(path, row["query"]) for path in (row["database"], *row["hidden"]))
        assert visible
        assert hidden
        assert visible != hidden


def test_splits_share_no_table_column_word_name_or_number(
    rows: dict[Split, list[dict[str, Any]]],
) -> None:
    shared = {"name"}
    for one, other in combinations(SPLITS, 2):
        identifiers = [
            {
                word
                for schema in schemas(split, 0)
                for table in (schema.parent, schema.child)
                for word in (table.name, f"{table.name}_id", "name", table.text, *table.numbers)
            }
            for split in (one, other)
        ]
        assert identifiers[0] & identifiers[1] == shared
        assert not set(words(one)) & set(words(other))
        assert not set(names(one)) & set(names(other))
        assert not set(numbers(one)) & set(numbers(other))
        used = [_numbers_in(rows[split]) for split in (one, other)]
        assert not used[0] & used[1]
        assert used[0] <= set(numbers(one))


def test_to_train_on_there_are_schemas_whose_tables_have_the_columns_of_others() -> None:
    found = schemas("train", 0)
    assert len(found) == 24 * (1 + MIXES)
    assert len({str((one.parent, one.child)) for one in found}) == len(found)
    whole, mixed = found[:24], found[24:]
    for side in ("parent", "child"):
        columns = Counter(
            column
            for one in whole
            for column in (getattr(one, side).text, *getattr(one, side).numbers)
        )
        of_mixed = Counter(
            column
            for one in mixed
            for column in (getattr(one, side).text, *getattr(one, side).numbers)
        )
        assert of_mixed == Counter({column: MIXES * count for column, count in columns.items()})
    assert all(len(set(table.numbers)) == 2 for one in mixed for table in (one.parent, one.child))
    assert [len(schemas(split, 0)) for split in ("val", "test")] == [4, 8]


def _numbers_in(rows: list[dict[str, Any]]) -> set[int]:
    """Numbers of two and more digits in questions, queries and columns of numbers."""
    texts = [row["question"] + row["query"] for row in rows]
    for path, schema in {(row["database"], row["schema"]) for row in rows}:
        for table, columns in re.findall(r"(\w+) \((.*)\)", schema):
            texts += [str(run(path, f"SELECT {', '.join(columns.split(', ')[3:5])} FROM {table}"))]
    return {int(text) for text in re.findall(r"\d{2,}", " ".join(texts))}


def test_wordings_are_held_out_but_each_of_their_parts_is_in_every_split() -> None:
    drawn = [set(wordings(split)) for split in SPLITS]
    assert [len(one) for one in drawn] == [8, 4, 4]
    for one, other in combinations(drawn, 2):
        assert not one & other
    for one in drawn:
        assert {opening for opening, _ in one} == {form for _, form in one} == set(range(WAYS))
    for name, kind in KINDS.items():
        assert len(set(kind.openings)) == len(set(kind.forms)) == WAYS, name


def test_questions_are_asked_by_their_splits_wordings(folder: Path) -> None:
    for split in SPLITS:
        questions = [question for _, question in draw(split, 60, 3, (1, 2, 3), folder)]
        assert {question.wording for question in questions} <= set(wordings(split))
        assert not any("{" in question.text for question in questions)


def test_a_question_can_be_answered_with_a_pencil(tmp_path: Path) -> None:
    rows = generate("test", 40, 0, (2,), tmp_path)
    row = next(
        row for row in rows if row["kind"] == "join_count" and "=" in row["query"].split("WHERE")[1]
    )
    found = re.search(
        r"SELECT COUNT\(\*\) FROM (\w+) JOIN (\w+) .* WHERE \w+\.(\w+) = '(\w+)'", row["query"]
    )
    assert found is not None
    child, parent, column, word = found.groups()
    assert parent in row["question"]
    assert word in row["question"]
    keys = [
        key
        for key, text in run(row["database"], f"SELECT {parent}_id, {column} FROM {parent}")
        if text == word
    ]
    owners = [owner for (owner,) in run(row["database"], f"SELECT {parent}_id FROM {child}")]
    assert run(row["database"], row["query"]) == [(sum(owner in keys for owner in owners),)]


def test_the_oracle_is_always_right_and_chance_hardly_ever(
    rows: dict[Split, list[dict[str, Any]]],
) -> None:
    found = score(rows["test"][:52])
    assert found["oracle"] == 1
    assert found["random"] < 0.05


def test_wrong_arguments_are_refused_by_name(folder: Path) -> None:
    with pytest.raises(ValueError, match="unknown split 'dev': choose one of train, val, test"):
        generate("dev", 1, 0, folder=folder)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="count must not be negative, got -1"):
        generate("val", -1, 0, folder=folder)
    with pytest.raises(ValueError, match=r"levels must be some of \(1, 2, 3\), got \(4,\)"):
        generate("val", 1, 0, (4,), folder)
    assert generate("val", 0, 0, folder=folder) == []


def test_asking_for_more_questions_than_the_split_holds_is_an_error(folder: Path) -> None:
    with pytest.raises(ValueError, match="split 'val' has no more questions of the kind"):
        generate("val", 3000, 0, (3,), folder)
