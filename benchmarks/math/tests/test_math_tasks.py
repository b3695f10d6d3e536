"""Generated problems: deterministic, solvable, and disjoint between the splits."""

from __future__ import annotations

import json
import random
import re
from collections import Counter

import pytest

from lightningrl_bench_math import tasks
from lightningrl_bench_math.tasks import (
    EVENTS,
    NAMES,
    QUESTIONS,
    STARTS,
    Split,
    calculate,
    draw,
    generate,
    structures,
    vocabulary,
)

SPLITS: tuple[Split, ...] = ("train", "val", "test")


def _two_digit_numbers(rows: list[dict[str, str]]) -> set[str]:
    return {n for row in rows for n in re.findall(r"\d+", row["question"]) if len(n) == 2}


def _words(rows: list[dict[str, str]]) -> set[str]:
    return {word for row in rows for word in re.findall(r"[a-z]+", row["question"])}


def test_the_same_arguments_give_the_same_rows_and_another_seed_gives_others() -> None:
    assert generate("train", 20, 7) == generate("train", 20, 7)
    assert generate("train", 20, 7) != generate("train", 20, 8)


def test_a_longer_list_begins_with_the_shorter_one() -> None:
    assert generate("val", 30, 0)[:10] == generate("val", 10, 0)


def test_rows_are_json_and_their_ids_and_questions_are_unique() -> None:
    rows = generate("train", 300, 0)
    assert json.loads(json.dumps(rows)) == rows
    assert len({row["id"] for row in rows}) == 300
    assert len({row["question"] for row in rows}) == 300


@pytest.mark.parametrize("split", SPLITS)
def test_the_steps_lead_to_the_answer_one_after_another(split: Split) -> None:
    for row in generate(split, 200, 1):
        results = [calculate((left, op, right)) for left, op, right in row["steps"]]
        assert [left for left, _, _ in row["steps"][1:]] == results[:-1]
        assert row["answer"] == str(results[-1])
        assert 1 <= len(results) <= 3
        assert min(results) >= 0


def test_no_other_operator_gives_the_result_of_a_subtraction() -> None:
    for split in SPLITS:
        steps = [step for row in generate(split, 400, 4) for step in row["steps"]]
        subtractions = [(left, right) for left, operator, right in steps if operator == "-"]
        assert subtractions
        for left, right in subtractions:
            assert left - right not in (left + right, left * right, left % right)


def test_a_story_can_be_solved_with_a_pencil() -> None:
    rng = random.Random(0)
    problem = next(
        p for p in iter(lambda: draw("train", rng), None) if p.structure == "has/loses/cost"
    )
    match = re.fullmatch(
        r"[a-z]+ has (\d+) [a-z]+ and loses (\d+)\. each costs (\d)\. what is the total\?",
        problem.question,
    )
    assert match is not None
    x, z, v = map(int, match.groups())
    assert problem.answer == (x - z) * v


def test_structures_are_held_out_but_each_of_their_parts_is_seen_in_every_split() -> None:
    train, val, test = (set(structures(split)) for split in SPLITS)
    assert (len(train), len(val), len(test)) == (42, 6, 6)  # 3 starts * 6 events * 3 questions = 54
    assert not train & val
    assert not train & test
    assert not val & test
    for names in (train, val, test):
        parts = {part for name in names for part in name.split("/")}
        assert parts == {*STARTS, *EVENTS, *QUESTIONS}


def test_no_two_digit_number_name_or_item_is_shared_between_splits() -> None:
    rows = {split: generate(split, 400, 3) for split in SPLITS}
    numbers = [_two_digit_numbers(rows[split]) for split in SPLITS]
    assert not numbers[0] & numbers[1]
    assert not numbers[0] & numbers[2]
    assert not numbers[1] & numbers[2]
    assert {"zoe", "ivan", "kites", "lamps"} & _words(rows["train"]) == set()
    assert {"nora", "omar", "shells", "rings"} & (
        _words(rows["train"]) | _words(rows["val"])
    ) == set()


def test_the_vocabulary_holds_every_word_of_every_split() -> None:
    for split in SPLITS:
        assert _words(generate(split, 400, 5)) <= set(vocabulary())


def test_wrong_arguments_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match="unknown split 'dev': choose one of train, val, test"):
        generate("dev", 1, 0)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="count must not be negative, got -1"):
        generate("val", -1, 0)
    assert generate("val", 0, 0) == []


def test_asking_for_more_questions_than_the_split_holds_is_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(tasks._STRUCTURES, "val", [("has", "gets", "now")])
    with pytest.raises(ValueError, match="split 'val' has no more than about"):
        generate("val", 10**6, 0)


def test_level_two_takes_up_to_eight_calculations_and_has_sentences_that_lead_nowhere() -> None:
    rows = generate("test", 200, 0, level=2)
    counts = {len(row["steps"]) for row in rows}
    assert (min(counts), max(counts)) == (2, 8)
    for row in rows:
        results = [calculate((left, op, right)) for left, op, right in row["steps"]]
        assert [left for left, _, _ in row["steps"][1:]] == results[:-1]
        assert row["answer"] == str(results[-1])
    aside = [
        row for row in rows if len({name for name in NAMES["test"] if name in row["question"]}) == 2
    ]
    # Half of 200, within three standard errors.
    assert 79 <= len(aside) <= 121


def test_level_two_shares_nothing_between_splits_that_level_one_does_not() -> None:
    rows = {split: generate(split, 200, 0, level=2) for split in SPLITS}
    for one in SPLITS:
        for other in SPLITS:
            if one != other:
                assert not _two_digit_numbers(rows[one]) & _two_digit_numbers(rows[other])
                assert not {row["structure"] for row in rows[one]} & {
                    row["structure"] for row in rows[other]
                }
                assert not set(NAMES[one]) & _words(rows[other])


def test_an_unknown_level_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown level 3"):
        generate("train", 1, 0, level=3)  # pyright: ignore[reportArgumentType]


def test_even_stories_take_one_two_and_three_calculations_equally_often() -> None:
    rows = generate("train", 300, 0, even=True)
    counted = Counter(len(row["steps"]) for row in rows)
    assert set(counted) == {1, 2, 3}
    # 100 of 300 each, within three standard errors.
    assert all(75 <= count <= 125 for count in counted.values()), counted
    uneven = generate("train", 300, 0)
    assert sum(len(row["steps"]) == 1 for row in uneven) < counted[1]
