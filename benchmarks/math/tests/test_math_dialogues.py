"""Demonstrations for a language model are the agent's own dialogues."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from lightningrl_bench_math.calculator import CalculatorError, evaluate
from lightningrl_bench_math.dialogues import answers, dialogues
from lightningrl_bench_math.tasks import NAMES, draw

HELD_OUT = {*NAMES["val"], *NAMES["test"]}


def _expressions(dialogue: dict[str, Any]) -> list[str]:
    return [
        json.loads(message["tool_calls"][0]["function"]["arguments"])["expression"]
        for message in dialogue["messages"]
        if message.get("tool_calls")
    ]


def _calculated(expression: str) -> str:
    try:
        return evaluate(expression)
    except CalculatorError as error:
        return str(error)


def test_the_same_arguments_give_the_same_dialogues_and_another_seed_gives_others() -> None:
    assert list(dialogues(20, 0)) == list(dialogues(20, 0))
    assert list(dialogues(20, 0)) != list(dialogues(20, 1))


def test_each_result_is_what_the_calculator_says_and_the_answer_is_the_last_one() -> None:
    for one in dialogues(200, 3, slips=0.5):
        results = [message["content"] for message in one["messages"] if message["role"] == "tool"]
        assert [_calculated(expression) for expression in _expressions(one)] == results
        assert one["messages"][-1] == {"role": "assistant", "content": results[-1]}


def test_without_slips_every_call_is_one_calculation_of_the_story() -> None:
    for one in dialogues(100, 1, slips=0):
        assert "error" not in json.dumps(one["messages"])
        assert 1 <= len(_expressions(one)) <= 3


def test_slips_are_as_frequent_as_asked_and_a_refused_call_is_made_again() -> None:
    clean, slipped = (list(dialogues(400, 2, slips=share)) for share in (0.0, 1.0))
    assert clean != slipped
    refused = [one for one in slipped if "error" in json.dumps(one["messages"])]
    # Half of the slips, within three standard errors of 400 draws.
    assert 170 <= len(refused) <= 230
    for one in refused:
        expressions = _expressions(one)
        [place] = [n for n, expression in enumerate(expressions) if len(expression.split()) == 2]
        assert expressions[place + 1].startswith(expressions[place])


def test_only_training_problems_are_shown() -> None:
    for one in dialogues(300, 4, level=2):
        assert HELD_OUT.isdisjoint(one["messages"][1]["content"].replace(".", " ").split())


@pytest.mark.parametrize("share", [-0.1, 1.5])
def test_a_share_of_slips_that_is_none_is_refused(share: float) -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        list(dialogues(1, 0, slips=share))


def test_the_control_is_shown_the_right_number_at_once() -> None:
    rng = random.Random("dialogues/5")
    for shown in answers(20, 5):
        problem = draw("train", rng)
        assert [message["role"] for message in shown["messages"]] == ["system", "user", "assistant"]
        assert [one["content"] for one in shown["messages"][1:]] == [
            problem.question, str(problem.answer),
        ]  # fmt: skip
        assert "tools" not in shown
