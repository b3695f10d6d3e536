"""Demonstrations are reproducible, well formed, noisy in decisions, and true to the training split."""

from __future__ import annotations

import random
import re
from itertools import pairwise

from lightningrl_bench_math.calculator import evaluate
from lightningrl_bench_math.demonstrations import Segment, demonstration
from lightningrl_bench_math.tasks import structures, training_numbers


def _many(count: int, seed: int = 0) -> list[list[Segment]]:
    rng = random.Random(seed)
    return [demonstration(rng) for _ in range(count)]


def _stories(rows: list[list[Segment]]) -> list[list[Segment]]:
    return [row for row in rows if "<ans>" in row[-1][0]]


def test_the_same_seed_gives_the_same_demonstrations() -> None:
    assert _many(50) == _many(50)
    assert _many(50) != _many(50, seed=1)


def test_every_tool_result_is_what_the_calculator_says() -> None:
    for row in _many(300):
        texts = [text for text, _ in row]
        for call, reply in pairwise(texts):
            if call.startswith("<call>"):
                expression = call.removeprefix("<call>").removesuffix("<end>")
                assert reply == f"<tool>{evaluate(expression)}<asst>"


def test_prompts_and_actions_alternate_and_actions_end_with_end() -> None:
    for row in _many(300):
        assert [action for _, action in row] == [n % 2 == 1 for n in range(len(row))]
        assert all(text.endswith("<end>" if action else "<asst>") for text, action in row)


def test_questions_use_training_words_and_numbers_only() -> None:
    allowed = set(map(str, training_numbers()))
    for row in _stories(_many(400)):
        question = row[0][0]
        assert set(re.findall(r"\d+", question)) <= allowed
        assert not re.search(r"\b(zoe|ivan|nora|omar|kites|lamps|shells|rings)\b", question)
    assert len(structures("train")) == 42


def test_copy_rows_repeat_their_prompt() -> None:
    rows = _many(600)
    copies = [row for row in rows if "<ans>" not in row[-1][0]]
    assert 0 < len(copies) < 0.2 * len(rows)
    for (prompt, _), (answer, _) in copies:
        assert prompt == f"<user>{answer.removesuffix('<end>')}<asst>"


def test_demonstrations_are_right_often_enough_to_learn_from_and_wrong_often_enough_to_improve() -> (
    None
):
    rows = [row for row in _stories(_many(2000)) if "loses" in row[0][0]]
    subtracted = sum(any("-" in text and text[:6] == "<call>" for text, _ in row) for row in rows)
    assert 0.1 < subtracted / len(rows) < 0.7
