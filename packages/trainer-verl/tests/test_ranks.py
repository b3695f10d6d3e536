"""Which rows each rank gets."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from lightningrl_verl.worker.micro_batches import cut_by_padded_tokens
from lightningrl_verl.worker.ranks import deal


def test_two_ranks_get_equally_many_rows_and_about_equally_many_tokens() -> None:
    # Longest first to the rank with fewest tokens: 9 to the first; 8, 3 to the second, which is then full
    # with two of the first batch's five... so the third row of three goes where there is room.
    lengths = [9, 8, 3, 2, 1]
    assert deal([[0, 1, 2, 3, 4]], lengths, 2) == [[0, 3, 4], [1, 2, None]]


def test_one_rank_has_the_rows_in_their_order() -> None:
    assert deal([[0, 1, 2], [3]], [5, 6, 7, 8], 1) == [[0, 1, 2, 3, None, None]]


def test_mini_batches_are_of_one_size_on_every_rank() -> None:
    # Three rows make two a rank, so the single row of the second batch is filled up likewise.
    assert deal([[0, 1, 2], [3]], [1, 1, 1, 1], 2) == [[0, 2, 3, None], [1, None, None, None]]


@given(
    lengths=st.lists(st.integers(1, 50), min_size=1, max_size=20),
    ranks=st.integers(1, 5),
    cut=st.integers(0, 20),
)
def test_every_row_is_on_exactly_one_rank(lengths: list[int], ranks: int, cut: int) -> None:
    rows = list(range(len(lengths)))
    batches = [batch for batch in (rows[:cut], rows[cut:]) if batch]
    orders = deal(batches, lengths, ranks)
    assert len({len(order) for order in orders}) == 1
    assert sorted(row for order in orders for row in order if row is not None) == rows


def test_passes_are_split_until_there_are_as_many_as_elsewhere() -> None:
    assert cut_by_padded_tokens([1, 1, 1, 1], 8) == [[0, 1, 2, 3]]
    assert cut_by_padded_tokens([1, 1, 1, 1], 8, at_least=3) == [[0], [1], [2, 3]]
