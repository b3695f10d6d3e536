"""Demonstrations are the agent's own dialogues, with slips, and most of these mended."""

from __future__ import annotations

import json
from typing import Any

import pytest

from lightningrl_bench_rag.demonstrations import demonstrations
from lightningrl_bench_rag.search import index_of
from lightningrl_bench_rag.tasks import Level
from lightningrl_bench_rag.world import RELATIONS, read, world

LONGEST = {1: 3, 2: 4, 3: 5}
"""Level -> most searches, a slip included."""


def _queries(dialogue: dict[str, Any]) -> list[str]:
    return [
        json.loads(message["tool_calls"][0]["function"]["arguments"])["query"]
        for message in dialogue["messages"]
        if message.get("tool_calls")
    ]


def _right(dialogue: dict[str, Any]) -> list[str]:
    """The searches that the question asks for, and behind them its answer; from the facts alone."""
    question = dialogue["messages"][1]["content"].removesuffix("?").split(" is the ", 1)[1]
    *relations, known = question.replace(" of the ", " of ").split(" of ")
    facts = world("train", 0).facts
    steps: list[str] = []
    for relation in reversed(relations):
        steps.append(f"{relation} of {known}")
        known = facts[known, relation]
    return [*steps, known]


def test_the_same_arguments_give_the_same_dialogues_and_another_seed_gives_others() -> None:
    assert list(demonstrations(20, 0)) == list(demonstrations(20, 0))
    assert list(demonstrations(20, 0)) != list(demonstrations(20, 1))


@pytest.mark.parametrize("level", [1, 2, 3])
def test_without_slips_each_search_is_a_hop_and_its_passages_are_the_searchs_own(
    level: Level,
) -> None:
    index = index_of("generated/train/0")
    for one in demonstrations(60, 0, slips=0, level=level):
        assert [*_queries(one), one["messages"][-1]["content"]] == _right(one)
        shown = [m["content"] for m in one["messages"] if m["role"] == "tool"]
        assert shown == [index.answer(query) for query in _queries(one)]


def test_slips_are_as_frequent_as_asked_and_most_are_followed_by_the_right_search() -> None:
    clean = sum([*_queries(one), one["messages"][-1]["content"]] == _right(one) for one in demonstrations(400, 0))  # fmt: skip
    # 0.8 of 400, within three standard errors.
    assert 296 <= clean <= 344
    silent, kinds = 0, set[str]()
    for one in demonstrations(400, 0, slips=1.0):
        *right, answer = _right(one)
        queries = _queries(one)
        assert len(queries) <= LONGEST[1]
        if one["messages"][-1]["content"] != answer:
            silent += 1
            assert queries == right[: len(queries)]
            continue
        (poor,) = [query for n, query in enumerate(queries) if [*queries[:n], *queries[n + 1 :]] == right][-1:]  # fmt: skip
        kinds.add("short" if " of " not in poor else poor.split()[0])
    # 0.2 of 400, within three standard errors.
    assert 56 <= silent <= 104
    assert kinds == {"short", *(relation for found in RELATIONS.values() for relation in found)}


def test_a_wrong_answer_is_copied_from_a_passage() -> None:
    for one in demonstrations(200, 0, slips=1.0):
        answer = one["messages"][-1]["content"]
        assert answer in one["messages"][-2]["content"]
        assert read(f"The seat of X is {answer}.", "seat of X") == answer


@pytest.mark.parametrize("share", [-0.1, 1.5])
def test_a_share_of_slips_that_is_none_is_refused(share: float) -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        list(demonstrations(1, 0, slips=share))
