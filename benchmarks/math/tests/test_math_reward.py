"""The reward compares numbers, not spellings, and survives anything a model may write."""

from __future__ import annotations

import pytest

from lightningrl_bench_math.reward import exact_match, normalise

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
