"""Requests that keep what is new of them are put together again."""

from __future__ import annotations

from typing import Any

from lightningrl.conversation.recorded import whole_requests

FIRST: dict[str, Any] = {"model": "m", "messages": ["a"]}
SECOND: dict[str, Any] = {"messages": ["b"], "continues": "s-1", "kept": 1}
THIRD: dict[str, Any] = {"messages": ["c"], "continues": "s-2", "kept": 2}


def test_a_request_has_the_messages_of_those_that_it_continues_in_whatever_order_they_are() -> None:
    found = whole_requests({"s-3": THIRD, "s-2": SECOND, "s-1": FIRST})
    assert list(found) == ["s-3", "s-2", "s-1"]
    assert [one["messages"] for one in found.values()] == [["a", "b", "c"], ["a", "b"], ["a"]]
    assert "continues" not in found["s-3"]


def test_one_whose_first_messages_are_not_there_says_whose_it_lacks() -> None:
    assert whole_requests({"s-3": THIRD}) == {"s-3": THIRD}


def test_what_is_no_request_of_ours_is_left_as_it_is() -> None:
    others: dict[str, Any] = {
        "s-1": None,
        "s-2": {"continues": ["x"], "kept": 1},
        "s-3": {"continues": "s-1"},
        "s-4": {"continues": "s-4", "kept": 1, "messages": ["a"]},
    }
    assert whole_requests(others) == others
