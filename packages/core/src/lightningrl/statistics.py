"""How sure a mean is, how sure it is that one policy is better than another, and how far two raters agree. Pure.

Invariant: the same values give the same interval; what is random inside is seeded.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from statistics import NormalDist, fmean, stdev
from typing import NamedTuple

_RESAMPLES = 10_000
"""Of a bootstrap. Their own error is then a hundredth of the interval."""


class Estimate(NamedTuple):
    """A mean with an interval around it."""

    mean: float
    low: float
    high: float


def mean_estimate(values: Sequence[float], confidence: float = 0.95) -> Estimate:
    """The mean of independent values, and where the true one lies.

    Values of 0 and 1 alone get Wilson's score interval (Wilson 1927), which is right at the edges too: no success
    in 10 gives 0 to 0.28. Others get the percentile bootstrap (Efron 1979) with 10,000 resamples. Equal values that are
    neither 0 nor 1, and a single one, say nothing of their spread: the interval is that value.

    Args:
        values: at least one.
        confidence: share of such intervals that hold the true mean, between 0 and 1.

    Raises:
        ValueError: there is no value, or one is no finite number.
    """
    if not values or not all(math.isfinite(value) for value in values):
        raise ValueError(f"a mean needs finite values, at least one; got {len(values)}")
    if set(values) <= {0.0, 1.0}:
        return _wilson(sum(values), len(values), confidence)
    return _bootstrap(values, confidence)


def paired_difference(
    before: Sequence[float], after: Sequence[float], confidence: float = 0.95
) -> Estimate:
    """How much higher `after` is than `before`, of the same tasks in the same order.

    The percentile bootstrap of the differences, task by task: what makes a task hard for both drops out.

    Raises:
        ValueError: they are not of one length, there is none, or one is no finite number.
    """
    if len(before) != len(after):
        raise ValueError(f"pairs are needed; got {len(before)} and {len(after)} values")
    differences = [b - a for a, b in zip(before, after, strict=True)]
    if not differences or not all(math.isfinite(value) for value in differences):
        raise ValueError(f"a difference needs finite values, at least one; got {len(differences)}")
    return _bootstrap(differences, confidence)


class Agreement(NamedTuple):
    """How far two raters agree who say yes or no to the same things."""

    share: Estimate
    """Of the things to which both say the same."""
    kappa: float | None
    """Cohen's kappa: 1 is agreement in all, 0 what chance gives. `None`: each of both always says the same one thing."""
    first_alone: int
    """Things to which the first alone says yes."""
    second_alone: int
    """Things to which the second alone says yes."""


def agreement(first: Sequence[bool], second: Sequence[bool]) -> Agreement:
    """How far two raters agree on the same things in the same order.

    Kappa is (p_o - p_e) / (1 - p_e), where p_o is the share on which both agree and p_e what they would agree on by
    chance, each saying yes as often as he does (Cohen 1960, "A coefficient of agreement for nominal scales").

    Raises:
        ValueError: they are not of one length, or there is none.
    """
    if len(first) != len(second) or not first:
        raise ValueError(f"pairs are needed, at least one; got {len(first)} and {len(second)}")
    pairs = list(zip(first, second, strict=True))
    share = mean_estimate([float(a == b) for a, b in pairs])
    yes_first, yes_second = sum(first) / len(first), sum(second) / len(second)
    chance = yes_first * yes_second + (1 - yes_first) * (1 - yes_second)
    kappa = None if chance == 1 else (share.mean - chance) / (1 - chance)
    return Agreement(
        share, kappa, sum(a and not b for a, b in pairs), sum(b and not a for a, b in pairs)
    )


class Contrast(NamedTuple):
    """A mean difference between runs, and how small a one they could have shown."""

    mean: float
    low: float
    high: float
    detectable: float
    """The true difference that as many pairs, with this spread, would have found with probability 0.8."""


def contrast(
    before: Sequence[float], after: Sequence[float], confidence: float = 0.95, power: float = 0.8
) -> Contrast:
    """How much higher `after` is than `before`, of a few runs paired by seed.

    Student's interval (1908) of the differences: of five runs a bootstrap's is too narrow. The smallest difference that
    could have been seen is (t_(1 - alpha/2) + t_power) s / sqrt n, both quantiles with n - 1 degrees of freedom. Equal
    differences say nothing of their spread: then both are as narrow as can be.

    Raises:
        ValueError: they are not of one length, there are fewer than two, or one is no finite number.
    """
    if len(before) != len(after) or len(before) < 2:
        raise ValueError(
            f"two pairs are needed, or more; got {len(before)} and {len(after)} values"
        )
    differences = [b - a for a, b in zip(before, after, strict=True)]
    if not all(math.isfinite(value) for value in differences):
        raise ValueError("a difference needs finite values")
    mean, error = fmean(differences), stdev(differences) / math.sqrt(len(differences))
    degrees = len(differences) - 1
    wide = student_quantile(0.5 + confidence / 2, degrees)
    found = wide + student_quantile(power, degrees)
    return Contrast(mean, mean - wide * error, mean + wide * error, found * error)


def student_quantile(share: float, degrees: int) -> float:
    """Below which `share` of Student's t distribution lies.

    Args:
        share: from 0.5 to below 1.
        degrees: of freedom, at least 1.
    """
    low, high = 0.0, 1.0
    while _student_share(high, degrees) < share:
        high *= 2
    for _ in range(80):  # halving to the last bit
        middle = (low + high) / 2
        low, high = (middle, high) if _student_share(middle, degrees) < share else (low, middle)
    return high


def _student_share(t: float, degrees: int) -> float:
    """The share below `t` >= 0: the finite sums of Abramowitz and Stegun 26.7.3 and 26.7.4."""
    angle = math.atan(t / math.sqrt(degrees))
    sine, cosine = math.sin(angle), math.cos(angle)
    term, total = (1.0, 1.0) if degrees % 2 == 0 else (cosine, cosine)
    if degrees == 1:
        return 0.5 + angle / math.pi
    for k in range(2 + degrees % 2, degrees - 1, 2):
        term *= cosine * cosine * (k - 1) / k
        total += term
    inside = sine * total if degrees % 2 == 0 else 2 / math.pi * (angle + sine * total)
    return 0.5 + inside / 2


def _wilson(successes: float, count: int, confidence: float) -> Estimate:
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    share = successes / count
    weight = 1 + z * z / count
    middle = (share + z * z / (2 * count)) / weight
    half = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count)) / weight
    return Estimate(share, min(share, middle - half), max(share, middle + half))


def _bootstrap(values: Sequence[float], confidence: float) -> Estimate:
    rng = random.Random(0)
    count = len(values)
    means = sorted(fmean(rng.choices(values, k=count)) for _ in range(_RESAMPLES))
    tail = (1 - confidence) / 2
    low = means[int(tail * _RESAMPLES)]
    high = means[min(_RESAMPLES - 1, math.ceil((1 - tail) * _RESAMPLES))]
    return Estimate(fmean(values), low, high)
