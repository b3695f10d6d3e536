"""Every example stands in one update of each epoch, in an order that the seed decides."""

from __future__ import annotations

from typing import Any

import pytest

from lightningrl.recipe import WarmStart
from lightningrl_verl.supervised.course import Course, even_parts


def _course(examples: int, *, seed: int = 0, **settings: Any) -> Course:
    warm_start = WarmStart(demonstrations="d.jsonl", learning_rate=1e-4, **settings)
    return Course(warm_start, examples, seed=seed)


def test_an_epoch_goes_through_all_examples_once_in_updates_of_like_size() -> None:
    course = _course(33, batch_size=16, epochs=2)
    # 33 examples don't fit into 2 updates of 16; 3 updates have 11 each, and none a single one.
    assert (course.per_epoch, course.updates) == (3, 6)
    batches = [course.batch(number) for number in range(1, 7)]
    assert [len(batch) for batch in batches] == [11] * 6
    first = [index for batch in batches[:3] for index in batch]
    second = [index for batch in batches[3:] for index in batch]
    assert sorted(first) == sorted(second) == list(range(33))
    assert first != second


def test_the_order_depends_on_the_seed_alone() -> None:
    assert _course(20).batch(2) == _course(20).batch(2)
    assert _course(20).batch(2) != _course(20, seed=1).batch(2)


@pytest.mark.parametrize(
    ("every", "due"), [(None, [2, 4]), (1, [1, 2, 3, 4]), (3, [3, 4]), (9, [4])]
)
def test_scores_are_due_each_epoch_or_as_often_as_is_said_and_at_the_end(
    every: int | None, due: list[int]
) -> None:
    course = _course(4, batch_size=2, epochs=2, score_every=every)
    assert [number for number in range(1, 5) if course.due(number)] == due


def test_parts_differ_by_one_at_most() -> None:
    assert even_parts([1, 2, 3, 4, 5], 2) == [[1, 2, 3], [4, 5]]
    assert even_parts([1, 2], 2) == [[1], [2]]
