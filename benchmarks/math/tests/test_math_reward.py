"""The reward compares numbers, not spellings, and survives anything a model may write."""

from __future__ import annotations

import pytest

from lightningrl_bench_math.reward import exact_match, normalise, told_apart

TASK = {"answer": "1200"}


@pytest.mark.parametrize(
    "output", ["1200", " 1200\n", "1200.", "1200.0", "1,200", "1_200", "+1200", 1200]
)
def test_every_spelling_of_the_right_number_earns_one(output: object) -> None:
    assert exact_match(TASK, output, None) == 1.0


@pytest.mark.parametrize(
    "output", [None, "", ".", "120", "-1200", "1,20,0", "the answer is 1200", "NaN"]
)
def test_everything_else_earns_nothing(output: object) -> None:
    assert exact_match(TASK, output, None) == 0.0


def test_equal_numbers_have_one_spelling() -> None:
    assert normalise("0.50") == normalise(".5") == "0.5"
    assert normalise("-0") == normalise("0.0") == "0"
    assert normalise("1,234,567.10") == "1234567.1"


def test_a_huge_exponent_is_not_expanded() -> None:
    assert normalise("1e999999") == "1e999999"


def test_format_and_accuracy_are_told_apart() -> None:
    assert told_apart(TASK, "1,200", None) == {"final": 1.0, "format": 1.0, "accuracy": 1.0}
    assert told_apart(TASK, "-3.5", None) == {"final": 0.0, "format": 1.0, "accuracy": 0.0}
    for unreadable in (None, "", "the answer is 1200", "NaN", "1e999999"):
        assert told_apart(TASK, unreadable, None) == {"final": 0.0, "format": 0.0}
