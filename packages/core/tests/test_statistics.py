"""Intervals of means: known values, the edges, and that they cover what they should."""

from __future__ import annotations

import random

import pytest

from lightningrl.statistics import (
    agreement,
    contrast,
    mean_estimate,
    paired_difference,
    student_quantile,
)


def test_wilsons_interval_is_that_of_the_paper() -> None:
    # Wilson at 95 % of 81 in 263: 0.3080, 0.2553 to 0.3662 (Newcombe 1998, table I, method 3).
    mean, low, high = mean_estimate([1.0] * 81 + [0.0] * 182)
    assert (round(mean, 4), round(low, 4), round(high, 4)) == (0.3080, 0.2553, 0.3662)


def test_no_success_and_nothing_but_successes_leave_room() -> None:
    # Of 10: 0 to z^2 / (10 + z^2) = 3.8415 / 13.8415 = 0.2775.
    none, every = mean_estimate([0.0] * 10), mean_estimate([1.0] * 10)
    assert (none.mean, none.low, round(none.high, 4)) == (0.0, 0.0, 0.2775)
    assert (every.mean, round(every.low, 4), every.high) == (1.0, 0.7225, 1.0)


def test_other_values_get_an_interval_that_holds_their_mean() -> None:
    values = [0.25, 0.5, 0.75, 1.0] * 25
    mean, low, high = mean_estimate(values)
    assert mean == 0.625
    # Normal theory: 0.625 +- 1.96 * 0.2795 / 10 = 0.570 to 0.680.
    assert low == pytest.approx(0.570, abs=0.005)
    assert high == pytest.approx(0.680, abs=0.005)


def test_equal_values_say_nothing_of_their_spread() -> None:
    assert mean_estimate([0.5, 0.5, 0.5]) == (0.5, 0.5, 0.5)
    assert mean_estimate([0.3]) == (0.3, 0.3, 0.3)


def test_what_is_hard_for_both_drops_out_of_a_difference() -> None:
    rng = random.Random(1)
    before = [rng.random() for _ in range(100)]
    better = paired_difference(before, [value + 0.01 for value in before])
    assert better.mean == pytest.approx(0.01)
    assert better.low == pytest.approx(0.01)
    assert better.high == pytest.approx(0.01)


def test_a_difference_of_nothing_holds_zero() -> None:
    before, after = [0.0, 1.0] * 50, [1.0, 0.0] * 50
    found = paired_difference(before, after)
    assert found.mean == 0.0
    assert found.low < 0 < found.high


@pytest.mark.parametrize("values", [[], [float("nan")], [float("inf"), 1.0]])
def test_values_without_a_mean_are_refused(values: list[float]) -> None:
    with pytest.raises(ValueError, match="finite"):
        mean_estimate(values)


def test_pairs_must_be_pairs() -> None:
    with pytest.raises(ValueError, match="pairs are needed; got 2 and 1"):
        paired_difference([0.0, 1.0], [1.0])
    with pytest.raises(ValueError, match="at least one"):
        paired_difference([], [])


def test_agreement_of_two_raters_is_that_of_the_table() -> None:
    # 20 yes of both, 5 of the first alone, 10 of the second alone, 15 no of both: p_o = 35/50 = 0.7;
    # yes of 25 and of 30 in 50: p_e = 0.5 * 0.6 + 0.5 * 0.4 = 0.5; kappa = (0.7 - 0.5) / 0.5 = 0.4.
    first = [True] * 25 + [False] * 25
    second = [True] * 20 + [False] * 5 + [True] * 10 + [False] * 15
    found = agreement(first, second)
    assert found.share.mean == pytest.approx(0.7)
    assert found.kappa == pytest.approx(0.4)
    assert (found.first_alone, found.second_alone) == (5, 10)


def test_a_rater_who_says_one_thing_alone_has_no_agreement_beyond_chance() -> None:
    assert agreement([True, False], [True, True]).kappa == 0.0
    assert agreement([True, True], [True, True]).kappa is None
    assert agreement([True, False], [False, True]).kappa == -1.0


@pytest.mark.parametrize(("first", "second"), [([], []), ([True], [True, False])])
def test_agreement_needs_pairs(first: list[bool], second: list[bool]) -> None:
    with pytest.raises(ValueError, match="pairs are needed"):
        agreement(first, second)


@pytest.mark.parametrize(
    ("share", "degrees", "quantile"),
    # Student's table.
    [(0.975, 1, 12.706), (0.975, 2, 4.303), (0.975, 4, 2.776), (0.975, 9, 2.262), (0.8, 4, 0.941)],
)
def test_students_quantiles_are_those_of_the_table(
    share: float, degrees: int, quantile: float
) -> None:
    assert student_quantile(share, degrees) == pytest.approx(quantile, abs=5e-4)


def test_a_contrast_says_what_so_few_runs_could_have_seen() -> None:
    # Differences 1, 2, 3: mean 2, deviation 1, error 1 / sqrt 3 = 0.57735; t_0.975 = 4.3027, t_0.8 = 1.0607
    # with two degrees: 4.3027 * 0.57735 = 2.4841, and (4.3027 + 1.0607) * 0.57735 = 3.0965.
    found = contrast([5.0, 0.0, 1.0], [6.0, 2.0, 4.0])
    assert found == pytest.approx((2.0, -0.4841, 4.4841, 3.0965), abs=1e-4)
    assert contrast([0.0, 1.0], [0.5, 1.5]) == pytest.approx((0.5, 0.5, 0.5, 0.0))


@pytest.mark.parametrize(("before", "after"), [([1.0], [2.0]), ([1.0, 2.0], [1.0])])
def test_a_contrast_needs_two_pairs(before: list[float], after: list[float]) -> None:
    with pytest.raises(ValueError, match="two pairs are needed"):
        contrast(before, after)
