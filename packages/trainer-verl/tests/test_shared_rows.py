"""Rows packed so that what they share stands there once."""

from __future__ import annotations

import numpy as np

from lightningrl_verl.worker.shared_rows import Stretch, cut_by_shared_tokens, pack

PROMPT = list(range(100, 120))
"""20 tokens; beginnings of less than 16 are kept apart."""


def rows(*ids: list[int]) -> list[np.ndarray]:
    return [np.array(one, np.int64) for one in ids]


def test_what_rows_share_is_packed_once() -> None:
    packed = pack(rows([*PROMPT, 2, 3], [7, 8], [*PROMPT, 1]))
    # In order: [7, 8], the prompt with 1, then what the prompt with 2, 3 adds.
    assert packed.tokens.tolist() == [7, 8, *PROMPT, 1, 2, 3]
    assert packed.positions.tolist() == [0, 1, *range(21), 20, 21]
    assert packed.stretches == (
        Stretch(0, 2, ()),
        Stretch(2, 23, ()),
        Stretch(23, 25, ((2, 22),)),
    )
    assert [where.tolist() for where in packed.places] == [
        [*range(2, 22), 23, 24],
        [0, 1],
        [*range(2, 23)],
    ]


def test_a_branch_of_a_branch_sees_both() -> None:
    packed = pack(rows([*PROMPT, 5, 6], [*PROMPT, 1], [*PROMPT, 5, 7]))
    # [.., 1] is columns 0 to 20, [.., 5, 6] adds 21 and 22, [.., 5, 7] adds 23 behind 0..19 and 21.
    assert packed.stretches[2] == Stretch(23, 24, ((0, 20), (21, 22)))
    assert packed.positions.tolist() == [*range(21), 20, 21, 21]
    # Pieces 0..19, 20, 21, 22 and 23.
    assert packed.pieces == (20, 1, 1, 1, 1)
    assert packed.seen == ((0, 1), (0, 2, 3), (0, 2, 4))


def test_a_row_that_another_contains_adds_nothing() -> None:
    packed = pack(rows(PROMPT, PROMPT, [*PROMPT, 1]))
    assert packed.tokens.tolist() == [*PROMPT, 1]
    assert len(packed.stretches) == 2


def test_passes_hold_as_many_tokens_as_the_budget_shared_ones_counted_once() -> None:
    ids = rows([*PROMPT, 1], [9] * 10, [*PROMPT, 2], [*PROMPT, 3], [9] * 30)
    # In order: 10 of the nines; those of the longer row, of which 10 are too few to be shared; the prompts.
    assert cut_by_shared_tokens(ids, 25) == [[1], [4], [0, 2, 3]]
    assert cut_by_shared_tokens(ids, 100) == [[1, 4, 0, 2, 3]]
    assert cut_by_shared_tokens(ids, 100, at_least=2) == [[1, 4], [0, 2, 3]]
