"""Texts and numbers are stored as what they are, whatever class they are of."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from lightningrl.capture.jsonable import is_jsonable, jsonable


class Text(str):
    """As LangChain's `.text` is one."""

    __slots__ = ()


class Number(float):
    """A float of the user's."""


@pytest.mark.parametrize(
    ("given", "stored"),
    [
        (Text("hello"), "hello"),
        ([Text("a"), {Text("b"): Text("c")}], ["a", {"b": "c"}]),
        (Number(1.5), 1.5),
        (np.str_("a"), "a"),
        (np.float32(0.5), 0.5),
        (np.int64(3), 3),
        (np.bool_(True), True),
        (np.array(2.0), 2.0),
        ({"a": np.int64(1)}, {"a": 1}),
    ],
)
def test_a_subclass_and_a_librarys_number_are_stored_plainly(given: Any, stored: Any) -> None:
    found = jsonable(given)
    assert found == stored
    assert type(found) is type(stored)
    assert is_jsonable(given)
