"""Means, deviations and sums over labelled values: the arithmetic of credit.

Invariant: values that are all equal under a label become exactly 0, never a rounding error that a
division blows up.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lightningrl.credit.decisions import Decisions, Floats, Labels

EPSILON = 1e-6
"""Added to standard deviations, as in verl 0.9.1, `trainer/ppo/core_algos.py`."""

_WHITENING_EPSILON = 1e-8
"""Added to the variance, as in verl 0.9.1, `utils/torch_functional.py`, `masked_whiten`."""


def counts(labels: Labels) -> Labels:
    """[n] how many values share each one's label."""
    return np.bincount(labels)[labels] if len(labels) else np.zeros(0, np.int64)


def means(labels: Labels, values: Floats) -> Floats:
    """[n] the mean of the values that share each one's label; exactly their value where all are equal."""
    if not len(labels):
        return np.zeros(0)
    mean = (np.bincount(labels, values) / np.maximum(np.bincount(labels), 1))[labels]
    return np.where(all_equal(labels, values), values, mean)


def centred(labels: Labels, values: Floats) -> Floats:
    """Values minus the mean of their label; a value alone gives 0."""
    return values - means(labels, values)


def standardised(labels: Labels, values: Floats, *, ddof: int = 1) -> Floats:
    """Centred values over their label's standard deviation (plus `EPSILON`).

    Args:
        labels: [n].
        values: [n].
        ddof: 1 for the sample's deviation, 0 for the population's.
    """
    apart = centred(labels, values)
    return apart / (_deviations(labels, apart, ddof) + EPSILON)


def deviations(labels: Labels, values: Floats, *, ddof: int = 1) -> Floats:
    """[n] the standard deviation of the values that share each one's label; 0 of a value alone."""
    return _deviations(labels, centred(labels, values), ddof)


def _deviations(labels: Labels, apart: Floats, ddof: int) -> Floats:
    if not len(labels):
        return np.zeros(0)
    squares = np.bincount(labels, apart * apart)
    return np.sqrt(squares / np.maximum(np.bincount(labels) - ddof, 1))[labels]


def whitened(values: Floats, weights: Labels) -> Floats:
    """Values minus their weighted mean, over the weighted sample deviation.

    With `weights` the tokens of each value this is verl's `masked_whiten` over all tokens. All 0 where
    fewer than two units of weight or no differences exist.
    """
    total = weights.sum()
    weighted = values[weights > 0]
    if total < 2 or weighted.min() == weighted.max():
        return np.zeros(len(values))
    apart = values - np.dot(values, weights) / total
    variance = np.dot(apart * apart, weights) / (total - 1)
    return apart / np.sqrt(variance + _WHITENING_EPSILON)


def paired(one: Labels, other: Labels) -> Labels:
    """[n] one label for each pair of labels."""
    if not len(one):
        return one
    return np.unique(one * (int(other.max()) + 1) + other, return_inverse=True)[1].reshape(-1)


def members_per_state(decisions: Decisions) -> Labels:
    """[n] how many members were in each decision's state."""
    states = decisions.states[0]
    if not len(states):
        return states
    pairs = np.unique(paired(states, decisions.member), return_index=True)[1]
    return np.bincount(states[pairs], minlength=int(states.max()) + 1)[states]


def backward(decisions: Decisions, values: Floats, decay: float | Floats) -> Floats:
    """x_t = value_t + decay_t * (mean of x over the decisions that follow t), from the ends back.

    With rewards and a discount these are returns to go; with TD residuals and discount times lambda,
    generalised advantages. One number is the decay of all.
    """
    x = values.copy()
    decays = np.broadcast_to(decay, len(values))
    following = np.zeros(len(values))
    children = children_of(decisions)
    order = np.argsort(decisions.turn, kind="stable")
    bounds = np.cumsum(np.bincount(decisions.turn)) if len(order) else []
    for rows in reversed(np.split(order, bounds[:-1])) if len(order) else ():
        x[rows] += decays[rows] * following[rows] / np.maximum(children[rows], 1)
        parents = decisions.parent[rows]
        has = parents >= 0
        np.add.at(following, parents[has], x[rows[has]])
    return x


def following_mean(decisions: Decisions, values: Floats) -> Floats:
    """[n] mean of `values` over the decisions that follow each; 0 where it is the last."""
    sums = np.zeros(len(values))
    has = decisions.parent >= 0
    np.add.at(sums, decisions.parent[has], values[has])
    return sums / np.maximum(children_of(decisions), 1)


def children_of(decisions: Decisions) -> Labels:
    """[n] how many decisions follow each one directly; more than one where it branches."""
    parents = decisions.parent[decisions.parent >= 0]
    return np.bincount(parents, minlength=len(decisions))


def all_equal(labels: Labels, values: Floats) -> NDArray[np.bool_]:
    """[n] whether all values that share each one's label are equal."""
    if not len(labels):
        return np.zeros(0, np.bool_)
    size = int(labels.max()) + 1
    low, high = np.full(size, np.inf), np.full(size, -np.inf)
    np.minimum.at(low, labels, values)
    np.maximum.at(high, labels, values)
    return (low == high)[labels]
