"""The scorers' rules, and format told apart from accuracy."""

from __future__ import annotations

import pytest

from lightningrl_bench_rag.reward import (
    MAX_WORDS,
    exact,
    exact_match,
    f1,
    f1_and_format,
    normalise,
    readable,
    word_f1,
)

TASK = {"answer": "Denver Broncos", "aliases": ["the Broncos"]}


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("The  Denver\tBroncos!", "denver broncos"),
        ("an apple, a pear and the plum", "apple pear and plum"),
        ("anthem theatre", "anthem theatre"),  # no articles within words
        ("U.S.A.", "usa"),  # punctuation goes without a space
        ("20th-century", "20thcentury"),
        ("the", ""),
    ],
)
def test_texts_are_compared_without_case_punctuation_articles_and_spaces(
    text: str, normal: str
) -> None:
    assert normalise(text) == normal


@pytest.mark.parametrize(
    ("prediction", "answer", "score"),
    [
        ("Denver Broncos", "the Denver Broncos", 1.0),
        # "Chief of Protocol": 2 of 3 words found are right, 2 of 2 wanted are found: 2 * 2 / (3 + 2).
        ("protocol chief officer", "chief protocol", 0.8),
        ("Shirley Temple Black", "Shirley Temple", 0.8),
        # Each word counts as often as it occurs: "new" is shared once: 2 * 1 / (2 + 2).
        ("new new", "new york", 0.5),
        ("Greenwich Village, New York City", "1927", 0.0),
        # HotpotQA's closed answers have no partial credit.
        ("yes", "yes", 1.0),
        ("yes they are", "yes", 0.0),
        ("no", "no man", 0.0),
        ("noanswer", "answer", 0.0),
        # SQuAD 2.0: two empty answers are the same, one is not.
        ("", "the", 1.0),
        ("", "york", 0.0),
    ],
)
def test_f1_is_that_of_words(prediction: str, answer: str, score: float) -> None:
    assert word_f1(prediction, answer) == pytest.approx(score)
    assert exact(prediction, answer) == float(score == 1.0)


def test_format_and_accuracy_are_told_apart() -> None:
    right = {"final": 1.0, "format": 1.0, "accuracy": 1.0, "f1": 1.0}
    assert exact_match(TASK, "denver broncos.", None) == right
    assert exact_match(TASK, "Broncos", None) == right  # an alias
    # "the Denver team": 2 * 1 / (2 + 2) with the answer.
    part = {"format": 1.0, "accuracy": 0.0, "f1": 0.5}
    assert exact_match(TASK, "the Denver team", None) == {"final": 0.0, **part}
    assert f1(TASK, "the Denver team", None) == {"final": 0.5, **part}
    assert f1_and_format(TASK, "the Denver team", None) == pytest.approx({"final": 0.55, **part})


@pytest.mark.parametrize(
    "output",
    [
        None, "", " \n", "?!", "the", "Denver Broncos\nand more", " ".join(["word"] * (MAX_WORDS + 1)),
        '<tool_call>{"name": "search"', "Denver Broncos</tool_call>",
    ],
)  # fmt: skip
def test_what_is_no_answer_earns_nothing(output: str | None) -> None:
    assert not readable(output)
    for reward in (exact_match, f1, f1_and_format):
        assert reward(TASK, output, None) == {"final": 0.0, "format": 0.0}
