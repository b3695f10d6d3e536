"""The calculator does arithmetic and nothing else."""

from __future__ import annotations

import pytest

from lightningrl_bench_math.calculator import CalculatorError, evaluate


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("12*7", "84"),
        ("3-9", "-6"),
        ("17%5", "2"),
        ("(2+3)*4", "20"),
        (" -4 + 10 ", "6"),
        ("6/3", "2"),
        ("7/2", "3.5"),
        ("0.1+0.2", "0.3"),
        ("1/3", "0.3333333333"),
    ],
)
def test_arithmetic(expression: str, value: str) -> None:
    assert evaluate(expression) == value


@pytest.mark.parametrize(
    "expression",
    [
        "",
        "   ",
        "12*",
        "*12",
        "2**9",
        "7//2",
        "1/0",
        "5%0",
        "007",
        "1.2.3",
        "()",
        "abs(2)",
        "__import__('os')",
        "9" * 16,
        "999999999*999999999",
        "1+" * 60 + "1",
        "(" * 60 + "1" + ")" * 39,
        "1 2",
        "٣+4",
        "1\n+2",
    ],
)
def test_everything_else_is_the_one_error(expression: str) -> None:
    with pytest.raises(CalculatorError, match=r"^error$"):
        evaluate(expression)
