"""Arithmetic on a string, safely: numbers, + - * / %, parentheses and signs, nothing else.

Invariant: `evaluate` never executes anything. It walks a syntax tree in which every node kind is
listed here, on exact fractions, within fixed limits of length and size; all else is a
`CalculatorError` with the fixed text "error", which is what the model reads.
"""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable
from fractions import Fraction

MAX_CHARACTERS = 100
"""Longest expression accepted, in characters; it also bounds the depth of the tree."""

MAX_MAGNITUDE = 10**15
"""Largest absolute value of any number or intermediate result."""

_ALLOWED = re.compile(r"[0-9.+\-*/%() ]+")

_BINARY: dict[type[ast.operator], Callable[[Fraction, Fraction], Fraction]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Mod: operator.mod,
}

_UNARY: dict[type[ast.unaryop], Callable[[Fraction], Fraction]] = {
    ast.UAdd: operator.pos,
    ast.USub: operator.neg,
}


class CalculatorError(ValueError):
    """The expression is not arithmetic, is too large, or divides by zero."""

    def __init__(self) -> None:
        super().__init__("error")


def evaluate(expression: str) -> str:
    """Return the value of `expression`, as an integer where it is one, else as a decimal.

    Raises:
        CalculatorError: for anything but arithmetic within the limits.
    """
    if len(expression) > MAX_CHARACTERS or not _ALLOWED.fullmatch(expression):
        raise CalculatorError
    try:
        tree = ast.parse(expression.strip(), mode="eval")
        value = _value(tree.body)
    except (SyntaxError, ZeroDivisionError) as error:
        raise CalculatorError from error
    return str(value.numerator) if value.denominator == 1 else format(float(value), ".10g")


def _value(node: ast.expr) -> Fraction:
    """Return the exact value of one node of the tree."""
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        return _bounded(Fraction(str(node.value)))
    if isinstance(node, ast.BinOp) and type(node.op) in _BINARY:
        return _bounded(_BINARY[type(node.op)](_value(node.left), _value(node.right)))
    if isinstance(node, ast.UnaryOp) and type(node.op) in _UNARY:
        return _UNARY[type(node.op)](_value(node.operand))
    raise CalculatorError


def _bounded(value: Fraction) -> Fraction:
    """Return `value`, or refuse it if it is larger than the calculator's display."""
    if abs(value) > MAX_MAGNITUDE:
        raise CalculatorError
    return value
